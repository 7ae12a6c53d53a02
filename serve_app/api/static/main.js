// The page: a form, and the edits that it has started, the latest first.

import { ApiError, serverFacts } from "./api.js";
import { prepareCompare } from "./compare.js";
import { element } from "./dom.js";
import { Draft } from "./draft.js";
import { offerExamples, prepareExamples } from "./examples.js";
import { offerChoices, prepareForm, showRefusal } from "./form.js";
import { prepareKeeping } from "./keeping.js";
import { Kept } from "./kept.js";
import { Key } from "./key.js";
import { preparePainter } from "./painter.js";
import { Pictures, stateOf } from "./pictures.js";
import { Prompts } from "./prompts.js";
import { announceSeed, Runs } from "./runs.js";
import { prepareTexts, t, write } from "./texts.js";

async function main() {
  prepareTexts(element("language"));
  const form = element("form");
  const { needs_key: needsKey, limits } = await serverFacts();
  const kept = await Kept.open();
  const prompts = new Prompts();
  const pictures = new Pictures(limits, (chosen) => prompts.show(chosen));
  const draft = new Draft({ pictures, prompts }, kept);
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
    const { fields } = draft;
    const refuse = (error) => showRefusal(error, "images");
    pictures.files().then((files) => runs.start({ files, fields }), refuse);
  });
  const runs = new Runs(key, kept, formsOf(form, pictures, draft));
  await draft.restore();
  // Until now, chosen pictures would have been lost, and the button would have left the page.
  form.inert = false;
  await runs.restore();
  prepareKeeping(runs, kept, pictures);
  await key.check();
}

/** Return the ways in which an edit fills the form. */
function formsOf(form, pictures, draft) {
  const setSeed = (seed) => {
    element("seed").value = seed;
    element("more").open = true;
    form.dispatchEvent(new Event("input"));
    announceSeed(seed);
  };
  return {
    goOn(file, before) {
      pictures.goOn(file, before);
      element("prompt").focus();
    },
    async refill({ fields, files }) {
      await draft.fill({ fields, files: stateOf(files) });
      form.querySelector("textarea:enabled").focus();
    },
    sameSeed: setSeed,
    newSeed: () => setSeed(""),
  };
}

main().catch((error) => {
  // Without the server's facts the form stays closed, and a line in the corner would be missed.
  element("failure").hidden = false;
  write(element("failure").querySelector(".problem"), () => t("page.failure", { reason: error.message }));
  element("failure").querySelector("button").onclick = () => location.reload();
  if (!(error instanceof ApiError)) throw error;
});
