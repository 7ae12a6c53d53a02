// The form as users left it: kept while they fill it in, and filled again when the page is loaded.

import { element } from "./dom.js";
import { filledFields, fillFields } from "./form.js";
import { newId } from "./names.js";
import { keep, recall } from "./storage.js";

const STORED = "image-edits-tab";

export class Draft {
  #parts;
  #kept;
  #tab;

  /** `parts`: { pictures, prompts }. A tab has a form of its own, and a new one begins with the latest of any. */
  constructor(parts, kept) {
    this.#parts = parts;
    this.#kept = kept;
    this.#tab = recall("sessionStorage", STORED) ?? newId();
    keep("sessionStorage", STORED, this.#tab);
  }

  /** Fill the form with what is kept of it, and keep it from now on. */
  async restore() {
    const form = await this.#kept.form(this.#tab);
    if (form) await this.fill(form);
    element("form").addEventListener("input", oneAtATime(() => this.#keep({ fields: this.fields })));
    this.#parts.pictures.listen(oneAtATime(() => this.#keep({ files: this.#parts.pictures.state })));
  }

  /** Return what is filled in by its API names, without empty fields, for which the server has defaults. */
  get fields() {
    const { prompt, ...others } = filledFields(element("form"));
    return { prompt: this.#parts.prompts.value, ...others };
  }

  /** Fill the form. `files`: { pictures, references }, as the state of Pictures. */
  async fill({ fields = { prompt: "" }, files = null }) {
    if (files) await this.#parts.pictures.fill(files);
    this.#parts.prompts.value = fields.prompt;
    fillFields(element("form"), fields);
  }

  async #keep(parts) {
    await this.#kept.keepForm(this.#tab, parts);
  }
}

/** Return a function that calls `act`, but never while it runs: then once more at its end. */
function oneAtATime(act) {
  let runs = false;
  let isLate = false;
  return async () => {
    isLate = runs;
    if (runs) return;
    runs = true;
    do {
      isLate = false;
      await act();
    } while (isLate);
    runs = false;
  };
}
