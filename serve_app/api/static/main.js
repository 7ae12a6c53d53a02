// The page: a form, and the edits that it has started, the latest first.

import { ApiError, serverFacts } from "./api.js";
import { prepareCompare } from "./compare.js";
import { announce, element } from "./dom.js";
import { offerExamples, prepareExamples } from "./examples.js";
import { filledFields, offerChoices, prepareForm, showRefusal } from "./form.js";
import { Key } from "./key.js";
import { preparePainter } from "./painter.js";
import { Pictures } from "./pictures.js";
import { Prompts } from "./prompts.js";
import { forgetRemoved, showRemoved } from "./removed.js";
import { Run } from "./run.js";
import { prepareTexts, t, write } from "./texts.js";

async function main() {
  prepareTexts(element("language"));
  const form = element("form");
  const { needs_key: needsKey, limits } = await serverFacts();
  const prompts = new Prompts();
  const pictures = new Pictures(limits, (chosen) => prompts.show(chosen));
  const key = new Key(needsKey, (model) => {
    pictures.offer(model);
    offerChoices(model, limits);
    offerExamples(model);
  });
  prepareCompare();
  preparePainter();
  prepareExamples();
  prepareForm(form, limits);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = { ...filledFields(form), prompt: prompts.value };
    const refuse = (error) => showRefusal(error, "images");
    pictures.files().then((files) => start({ files, fields }, key, pictures), refuse);
  });
  // Until now, chosen pictures would have been lost, and the button would have left the page.
  form.inert = false;
  await key.check();
}

function start(call, key, pictures) {
  forgetRemoved();
  const run = new Run(call, key, {
    again() {
      start(call, key, pictures);
      latest().focus();
    },
    refused(error, make) {
      showRefusal(error, error.param, make);
      showWhetherEmpty();
    },
    removed() {
      showRemoved(run, showWhetherEmpty);
      showWhetherEmpty();
    },
    goOn(file, before) {
      pictures.goOn(file, before);
      element("prompt").focus();
    },
    sameSeed(seed) {
      element("seed").value = seed;
      element("more").open = true;
      announce(t("form.seed.taken", { seed }));
    },
  });
  element("results").prepend(run.element);
  showWhetherEmpty();
  bringIntoSight(run.element);
  run.start();
}

/** Scroll to an edit if its beginning is out of sight, as on narrow screens. */
function bringIntoSight(run) {
  const { top } = run.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) run.scrollIntoView();
}

function showWhetherEmpty() {
  element("empty").hidden = latest() !== null;
}

function latest() {
  return element("results").querySelector(".run h2");
}

main().catch((error) => {
  // Without the server's facts the form stays closed, and a line in the corner would be missed.
  element("failure").hidden = false;
  write(element("failure").querySelector(".problem"), () => t("page.failure", { reason: error.message }));
  element("failure").querySelector("button").onclick = () => location.reload();
  if (!(error instanceof ApiError)) throw error;
});
