// One output of an edit in its row: first waiting, then its previews, then the picture with its file.

import { clone } from "./dom.js";
import { canShare, share } from "./saving.js";
import { t, write } from "./texts.js";

export class Output {
  element = clone("output-template");
  blob = null;
  url = null;
  #frame = this.element.querySelector(".frame");
  #picture = this.element.querySelector("img");
  #link = this.element.querySelector("a");

  /**
   * `of`: the name of its picture; `number`: which of the picture's variants it is; `stem`: its file name without the
   * extension. `open`: function that shows the output with its original; `goOn`: function that edits the output again;
   * `sameSeed`: function that takes its seed for the next edit; `newSeed`: function that has the next edit draw one.
   */
  constructor({ of, number, stem, original, open, goOn, sameSeed, newSeed }) {
    Object.assign(this, { of, number, stem, original });
    this.#button("go-on").addEventListener("click", () => goOn(this));
    this.#button("seed").addEventListener("click", () => sameSeed(this.seed));
    this.#button("new-seed").addEventListener("click", newSeed);
    this.#button("share").addEventListener("click", () => share(this.file));
    write(this.element.querySelector(".name"), () => t("output.variant", { number }));
    this.#frame.addEventListener("click", () => open(this));
    write(this.#frame, () => t("output.unfinished", { label: this.label }), "aria-label");
    this.#note("waiting", () => t("output.waiting"));
  }

  /** Its full name. */
  get label() {
    return t("output.label", { name: this.of, number: this.number });
  }

  /** Show a preview: a picture file of a size such as "96x64". `number`: which of the previews, from 1. */
  preview({ file, size, number }) {
    this.#show(file, size);
    this.#note("preview", () => t("output.preview", { number }));
  }

  /** Show the picture, and enable comparing and downloading it. `file`, `size`: as of a preview. */
  complete({ file, size, seed, output_format }) {
    this.#show(file, size);
    this.name = `${this.stem}.${output_format}`;
    this.seed = seed;
    const { name } = this;
    this.#note("done", () => t("output.made", { size: size.replace("x", " × "), seed }));
    this.#frame.disabled = false;
    write(this.#frame, () => t("output.compare", { label: this.label }), "aria-label");
    this.#link.href = this.url;
    this.#link.download = name;
    write(this.#link, () => t("output.download", { name }), "aria-label");
    this.#link.hidden = false;
    write(this.#button("go-on"), () => t("output.edit.which", { name }), "aria-label");
    write(this.#button("seed"), () => t("output.seed.which", { name }), "aria-label");
    write(this.#button("new-seed"), () => t("output.new.which", { name }), "aria-label");
    write(this.#button("share"), () => t("output.share.which", { name }), "aria-label");
    this.#button("share").hidden = !canShare(this.file);
  }

  get file() {
    return new File([this.blob], this.name, { type: this.blob.type });
  }

  get done() {
    return this.element.dataset.state === "done";
  }

  /** Mark the output as not done, unless it is done. */
  stop() {
    if (!this.done) this.#note("stopped", () => t("output.stopped"));
  }

  /** Release the picture's memory. */
  release() {
    URL.revokeObjectURL(this.url);
  }

  #show(file, size) {
    const [width, height] = size.split("x");
    this.element.style.setProperty("--ratio", width / height);
    this.release();
    this.blob = file;
    this.url = URL.createObjectURL(this.blob);
    this.#picture.src = this.url;
    this.#picture.hidden = false;
  }

  #button(name) {
    return this.element.querySelector(`[data-do=${name}]`);
  }

  #note(state, make) {
    this.element.dataset.state = state;
    write(this.element.querySelector(".note"), make);
  }
}

/** Return the picture of an event, of a preview or an output, as a file. */
export function fileOf({ b64_json, output_format }) {
  const bytes = Uint8Array.from(atob(b64_json), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${output_format}` });
}
