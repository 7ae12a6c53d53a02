// One output of an edit in its row: first waiting, then its previews, then the picture with its file.

import { clone } from "./dom.js";

export class Output {
  element = clone("output-template");
  blob = null;
  url = null;
  #frame = this.element.querySelector(".frame");
  #picture = this.element.querySelector("img");
  #link = this.element.querySelector("a");

  /**
   * `label`: the output's full name; `caption`: its short name; `stem`: its file name without the extension. `open`:
   * function that shows the output with its original; `goOn`: function that edits the output again; `sameSeed`: function
   * that takes its seed for the next edit.
   */
  constructor({ label, caption, stem, original, open, goOn, sameSeed }) {
    Object.assign(this, { label, stem, original });
    this.#button("go-on").addEventListener("click", () => goOn(this));
    this.#button("seed").addEventListener("click", () => sameSeed(this.seed));
    this.element.querySelector(".name").textContent = caption;
    this.#frame.addEventListener("click", () => open(this));
    this.#frame.setAttribute("aria-label", `${label}: not done yet`);
    this.#note("waiting", "waiting");
  }

  /** Show a preview. `event`: image_edit.partial_image. */
  preview(event) {
    this.#show(event);
    this.#note("preview", `preview ${event.partial_image_index + 1}`);
  }

  /** Show the picture, and enable comparing and downloading it. `event`: image_edit.completed. */
  complete(event) {
    this.#show(event);
    this.#note("done", `${event.size.replace("x", " × ")} · seed ${event.seed}`);
    this.name = `${this.stem}.${event.output_format}`;
    this.seed = event.seed;
    this.#frame.disabled = false;
    this.#frame.setAttribute("aria-label", `${this.label}: compare with the original`);
    this.#link.href = this.url;
    this.#link.download = this.name;
    this.#link.setAttribute("aria-label", `Download ${this.name}`);
    this.#link.hidden = false;
    this.#button("go-on").setAttribute("aria-label", `Edit this: ${this.name}`);
    this.#button("seed").setAttribute("aria-label", `Same seed as ${this.name}`);
  }

  get file() {
    return new File([this.blob], this.name, { type: this.blob.type });
  }

  get done() {
    return this.element.dataset.state === "done";
  }

  /** Mark the output as not done, unless it is done. */
  stop() {
    if (!this.done) this.#note("stopped", "not done");
  }

  /** Release the picture's memory. */
  release() {
    URL.revokeObjectURL(this.url);
  }

  #show({ b64_json, output_format, size }) {
    const [width, height] = size.split("x");
    this.element.style.setProperty("--ratio", width / height);
    this.release();
    this.blob = blobOf(b64_json, `image/${output_format}`);
    this.url = URL.createObjectURL(this.blob);
    this.#picture.src = this.url;
    this.#picture.hidden = false;
  }

  #button(name) {
    return this.element.querySelector(`[data-do=${name}]`);
  }

  #note(state, text) {
    this.element.dataset.state = state;
    this.element.querySelector(".note").textContent = text;
  }
}

function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}
