// The page: a form, and the edits that it has started, the latest first.

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
  // A field inside a closed <details> cannot show its validation message.
  element("more").addEventListener("invalid", () => (element("more").open = true), true);
  element("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  // Until now, chosen pictures would have been lost, and the button would have left the page.
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

/** Scroll to an edit if its beginning is out of sight, as on narrow screens. */
function bringIntoSight(run) {
  const { top } = run.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) run.scrollIntoView();
}

/** Move the focus to the latest remaining edit, or back to the form. */
function removed() {
  element("empty").hidden = latest() !== null;
  (latest() ?? element("prompt")).focus();
}

function latest() {
  return element("results").querySelector(".run h2");
}

/** Return the form's fields by their API names, without empty fields, for which the server has defaults. */
function filledFields(form) {
  return Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== ""));
}

main().catch((error) => {
  element("server").textContent = error.message;
  throw error;
});
