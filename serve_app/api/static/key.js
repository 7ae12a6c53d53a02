// The field for the API key. It is shown if the server has keys, and the key is stored for this tab only.

import { ApiError, servedModel } from "./api.js";
import { element, tell } from "./dom.js";
import { keep, recall } from "./storage.js";
import { t, write } from "./texts.js";

const STORED = "image-edits-key";
const ASK_AGAIN_MS = 2000;

export class Key {
  /** Whether the server needs a key. */
  needed;
  #offer;

  /** `offer`: called with what the server says of its model, once the key is valid. */
  constructor(needed, offer) {
    this.needed = needed;
    this.#offer = offer;
    element("key-field").hidden = !needed;
    element("key").required = needed;
    element("key").value = recall("sessionStorage", STORED) ?? "";
    element("key").addEventListener("change", () => this.#changed());
  }

  get value() {
    return this.needed ? element("key").value.trim() : "";
  }

  /** Ask the server for its model, and show the name, or that the key is invalid. */
  async check() {
    if (this.isMissing) return;
    try {
      const model = await servedModel(this.value);
      write(element("server"), () => nameOf(model));
      this.#offer(model);
      // Until its model is loaded, the server does not know what it can do.
      if (model.max_references === null) setTimeout(() => this.check(), ASK_AGAIN_MS);
      this.#accept();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) this.complain(error);
      else tell(element("server"), error);
    }
  }

  get isMissing() {
    return this.needed && !this.value;
  }

  /** Show the error of an edit without a valid key at the field, and focus the field. */
  refuse(error) {
    this.complain(error);
    element("key").focus();
  }

  /** Show the error of an edit without a valid key at the field. */
  complain(error) {
    tell(element("key-problem"), error);
    element("key").setAttribute("aria-invalid", "true");
  }

  /** Wait for another key, or for the end that `signal` gives. */
  changed(signal) {
    return new Promise((resolve) => {
      element("key").addEventListener("change", resolve, { once: true, signal });
      signal.addEventListener("abort", resolve);
    });
  }

  #changed() {
    keep("sessionStorage", STORED, this.value);
    this.#accept();
    this.check();
  }

  #accept() {
    write(element("key-problem"), () => "");
    element("key").setAttribute("aria-invalid", "false");
  }
}

function nameOf({ id, native_area }) {
  return native_area ? t("page.model", { model: id, side: Math.round(Math.sqrt(native_area)) }) : id;
}
