// The page: a form, and the edits that were started with it, the latest first.

import { serverFacts } from "./api.js";
import { prepareCompare } from "./compare.js";
import { element } from "./dom.js";
import { Key } from "./key.js";
import { Pictures } from "./pictures.js";
import { Run } from "./run.js";

async function main() {
  const form = element("form");
  const { needs_key: needsKey, limits } = await serverFacts();
  const pictures = new Pictures(limits);
  const key = new Key(needsKey);
  prepareCompare();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start({ pictures: pictures.all, fields: filledFields(form) }, key);
  });
  // A field that is folded away cannot show what is wrong with it.
  element("more").addEventListener("invalid", () => (element("more").open = true), true);
  element("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  // Before that a choice of pictures would be lost, and the button would send the form away.
  form.inert = false;
  await key.check();
}

function start(call, key) {
  const again = () => {
    start(call, key);
    latest().focus();
  };
  const run = new Run(call, key, { again, removed });
  element("empty").hidden = true;
  element("results").prepend(run.element);
  bringIntoSight(run.element);
  run.start();
}

/** Where its beginning is out of sight, as it is on narrow screens. */
function bringIntoSight(run) {
  const { top } = run.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) run.scrollIntoView();
}

/** The focus goes to the latest edit that is left, or back to the form. */
function removed() {
  element("empty").hidden = latest() !== null;
  (latest() ?? element("prompt")).focus();
}

function latest() {
  return element("results").querySelector(".run h2");
}

/** Names are those of the API. What is left empty is left to the server. */
function filledFields(form) {
  return Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== ""));
}

main().catch((error) => {
  element("server").textContent = error.message;
  throw error;
});
