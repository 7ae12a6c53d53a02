// The instruction: one for all pictures, or one for each.

import { clone, element } from "./dom.js";
import { t, write } from "./texts.js";

export class Prompts {
  #pictures = [];
  /** The row of each picture. */
  #rows = new WeakMap();

  constructor() {
    element("each").addEventListener("change", () => this.#update());
  }

  /** Offer an instruction for each of these pictures: [{ file, url }]. */
  show(pictures) {
    const [only] = pictures;
    const row = pictures.length === 1 && this.#isEach ? this.#rows.get(only) : null;
    if (row && textOf(row).value) element("prompt").value = textOf(row).value;
    this.#pictures = pictures;
    this.#update();
  }

  /** One text, or a list with one for each picture. */
  get value() {
    return this.#isEach ? this.#pictures.map((picture) => textOf(this.#row(picture)).value) : element("prompt").value;
  }

  set value(prompt) {
    element("each").checked = Array.isArray(prompt);
    if (Array.isArray(prompt)) this.#pictures.forEach((picture, i) => (textOf(this.#row(picture)).value = prompt[i]));
    else element("prompt").value = prompt;
    this.#update();
  }

  get #isEach() {
    return element("each").checked && this.#pictures.length > 1;
  }

  #update() {
    const isEach = this.#isEach;
    element("each").closest("label").hidden = this.#pictures.length < 2;
    // A hidden field would have to be filled in all the same.
    element("prompt").hidden = element("prompt").disabled = isEach;
    element("prompts").hidden = !isEach;
    element("prompts").replaceChildren(...(isEach ? this.#pictures.map((picture) => this.#row(picture)) : []));
    check();
  }

  /** Return the row of a picture. A new one begins with the instruction for all. */
  #row(picture) {
    if (!this.#rows.has(picture)) {
      const row = clone("prompt-template");
      const { name } = picture.file;
      row.querySelector("img").src = picture.url;
      write(textOf(row), () => t("form.prompt.of", { name }), "aria-label");
      textOf(row).value = element("prompt").value;
      this.#rows.set(picture, row);
    }
    return this.#rows.get(picture);
  }
}

/** Set the validity of what is asked for: empty texts are told by the browser, as of any required field. */
export function check() {
  for (const text of [element("prompt"), ...element("prompts").querySelectorAll("textarea")]) {
    const isBlank = text.value && !text.value.trim();
    write(text, () => (isBlank ? t("form.prompt.empty") : ""), "validity");
  }
}

function textOf(row) {
  return row.querySelector("textarea");
}
