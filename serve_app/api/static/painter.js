// The dialog in which users paint the mask of a picture with a brush, or load it from a file.

import { prepareBrushKeys } from "./brush_keys.js";
import { announce, element, openModal } from "./dom.js";
import { apply, blankMask, load, paint } from "./mask.js";
import { t, write } from "./texts.js";

// The largest brush, as a share of the picture's longer side.
const WIDEST = 0.4;

let size = null;
let operations = [];
let stroke = null;

/** Add the dialog's event listeners. Call once, when the page is loaded. */
export function preparePainter() {
  canvas().addEventListener("pointerdown", begin);
  canvas().addEventListener("pointermove", move);
  canvas().addEventListener("pointerup", end);
  canvas().addEventListener("pointercancel", end);
  canvas().addEventListener("pointerleave", () => (ring().hidden = true));
  prepareBrushKeys(canvas(), { press, draw, lift, show: showRing, resize, thickness, isPainted });
  width().addEventListener("input", () => showRing(canvas().width / 2, canvas().height / 2));
  button("undo").addEventListener("click", () => change(operations.slice(0, -1), t("mask.undone")));
  button("invert").addEventListener("click", () => change([...operations, { kind: "invert" }], t("mask.inverted")));
  button("clear").addEventListener("click", () => change([...operations, { kind: "clear" }], t("mask.cleared")));
  element("mask-file").addEventListener("change", async ({ target }) => {
    await loadMask(target.files[0]);
    // Without this, choosing the same file again would be no change event.
    target.value = "";
  });
  button("done").addEventListener("click", () => dialog().close("done"));
  button("cancel").addEventListener("click", () => dialog().close());
}

/**
 * Open the dialog; return the operations of the mask, or null if the user cancels. `picture`: { name, url, size };
 * `before`: the operations to begin with.
 */
export function openPainter(picture, before) {
  size = picture.size;
  write(element("mask-title"), () => t("mask.title", { name: picture.name }));
  stage().querySelector("img").src = picture.url;
  stage().style.setProperty("--ratio", size.width / size.height);
  Object.assign(canvas(), { width: blankMask(size).width, height: blankMask(size).height });
  ring().hidden = true;
  change(before);
  dialog().returnValue = "";
  openModal(dialog());
  return new Promise((resolve) => {
    dialog().addEventListener("close", () => resolve(dialog().returnValue ? operations : null), { once: true });
  });
}

/** Replace the operations, and announce `what` happened, if anything is to be announced. */
function change(next, what = "") {
  operations = next;
  stroke = null;
  paint(canvas(), operations);
  if (what) announce(what);
  complain(() => "");
  // Not disabled, which would take the focus from it.
  button("undo").setAttribute("aria-disabled", String(!operations.length));
}

/** Take a mask from a file, in place of what is painted. */
export async function loadMask(file) {
  try {
    change([...operations, await load(file, size)], t("mask.loaded", { name: file.name }));
  } catch (error) {
    complain(() => error.message);
  }
}

// --- the brush ---

function begin(event) {
  if (!event.isPrimary || event.button !== 0) return;
  event.preventDefault();
  canvas().setPointerCapture(event.pointerId);
  press(place(event));
}

function move(event) {
  if (!event.isPrimary) return;
  showRing(...place(event));
  if (!stroke) return;
  const coalesced = event.getCoalescedEvents?.() ?? [];
  draw((coalesced.length ? coalesced : [event]).map(place));
}

function end(event) {
  if (!stroke || !event.isPrimary) return;
  if (event.pointerType === "touch") ring().hidden = true;
  lift();
}

/** Begin a stroke at a place of the canvas. */
function press(point) {
  const erases = dialog().querySelector("[name=tool]:checked").value === "erase";
  stroke = { kind: "stroke", erases, thickness: thickness(), points: [point] };
  apply(canvas(), stroke);
}

function draw(points) {
  apply(canvas(), { ...stroke, points: [stroke.points.at(-1), ...points] });
  stroke.points.push(...points);
}

function lift() {
  change([...operations, stroke]);
}

/** Return the place of a pointer in the canvas's own pixels. */
function place({ clientX, clientY }) {
  const box = canvas().getBoundingClientRect();
  const scale = canvas().width / box.width;
  return [(clientX - box.left) * scale, (clientY - box.top) * scale];
}

function thickness() {
  return (width().value / 100) * WIDEST * Math.max(canvas().width, canvas().height);
}

/** Change the size of the brush; return the new one. */
function resize(by) {
  width().value = Number(width().value) + by;
  return width().value;
}

function isPainted(x, y) {
  const pen = canvas().getContext("2d", { willReadFrequently: true });
  // At the right and lower edge there is no further pixel.
  const [column, row] = [Math.min(x, canvas().width - 1), Math.min(y, canvas().height - 1)];
  return pen.getImageData(column, row, 1, 1).data[3] > 0;
}

/** Show the size of the brush around a place of the canvas. */
function showRing(x, y) {
  const shares = { "--x": x / canvas().width, "--y": y / canvas().height, "--thickness": thickness() / canvas().width };
  for (const [name, share] of Object.entries(shares)) ring().style.setProperty(name, `${100 * share}%`);
  ring().hidden = false;
}

// --- parts ---

function complain(make) {
  write(dialog().querySelector(".problem"), make);
}

function dialog() {
  return element("mask");
}

function stage() {
  return dialog().querySelector(".stage");
}

function canvas() {
  return stage().querySelector("canvas");
}

function ring() {
  return stage().querySelector(".ring");
}

function width() {
  return element("brush");
}

function button(name) {
  return dialog().querySelector(`[data-do=${name}]`);
}
