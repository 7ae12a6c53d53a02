// The dialog that compares an output with its original, by a slider between them.

import { element, openModal } from "./dom.js";
import { t, write } from "./texts.js";

// Beyond this, an output is said to be enlarged.
const TIMES = 2;

let outputs = [];
let shown = 0;

/** Add the dialog's event listeners. Call once, when the page is loaded. */
export function prepareCompare() {
  slider().addEventListener("input", slide);
  new ResizeObserver(sayIfEnlarged).observe(stage());
  button("previous").addEventListener("click", () => turn(-1));
  button("next").addEventListener("click", () => turn(1));
  button("close").addEventListener("click", () => element("compare").close());
}

/** Open the dialog. `all`: the finished outputs, in the order of the API; `first`: the output that is shown first. */
export function openCompare(all, first) {
  outputs = all;
  shown = all.indexOf(first);
  turn(0);
  openModal(element("compare"));
  slider().focus();
}

function turn(by) {
  shown = (shown + by + outputs.length) % outputs.length;
  button("previous").hidden = button("next").hidden = outputs.length < 2;
  show(outputs[shown]);
}

function show(output) {
  const { name, url, original } = output;
  write(element("compare-title"), () => output.label);
  const after = edited();
  write(after, () => output.label, "alt");
  after.onload = () => {
    stage().style.setProperty("--ratio", after.naturalWidth / after.naturalHeight);
    sayIfEnlarged();
  };
  after.src = url;
  // If the browser cannot show the original's format, the output is shown alone.
  stage().classList.toggle("alone", original.picture.hidden);
  if (original.url) stage().querySelector(".before").src = original.url;
  Object.assign(button("download"), { href: url, download: name });
  slider().value = 50;
  slide();
}

function slide() {
  const share = Number(slider().value);
  stage().style.setProperty("--share", `${share}%`);
  write(slider(), () => t("compare.share", { before: share, after: 100 - share }), "aria-valuetext");
}

function sayIfEnlarged() {
  const times = stage().clientWidth / edited().naturalWidth;
  write(element("enlarged"), () => (times > TIMES ? t("compare.enlarged", { times: times.toFixed(1) }) : ""));
}

function edited() {
  return stage().querySelector(".after");
}

function stage() {
  return element("compare").querySelector(".stage");
}

function slider() {
  return stage().querySelector("input");
}

function button(name) {
  return element("compare").querySelector(`[data-do=${name}]`);
}
