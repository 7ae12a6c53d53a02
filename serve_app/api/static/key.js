// The field for the API key. It is shown if the server has keys, and the key is stored for this tab only.

import { ApiError, servedModel } from "./api.js";
import { element } from "./dom.js";

const STORED = "image-edits-key";

export class Key {
  /** Whether the server needs a key. */
  needed;

  constructor(needed) {
    this.needed = needed;
    element("key-field").hidden = !needed;
    element("key").required = needed;
    element("key").value = sessionStorage.getItem(STORED) ?? "";
    element("key").addEventListener("change", () => this.#changed());
  }

  get value() {
    return this.needed ? element("key").value.trim() : "";
  }

  /** Request the model's name, and show it, or that the key is invalid. */
  async check() {
    if (this.needed && !this.value) return;
    try {
      element("server").textContent = await servedModel(this.value);
      this.#complain("");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) this.#complain(error.message);
      else element("server").textContent = error.message;
    }
  }

  /** Show the error of an edit without a valid key at the field, and focus the field. */
  refuse(error) {
    this.#complain(error.message);
    element("key").focus();
  }

  #changed() {
    sessionStorage.setItem(STORED, this.value);
    this.#complain("");
    this.check();
  }

  #complain(message) {
    element("key-problem").textContent = message;
    element("key").setAttribute("aria-invalid", String(message !== ""));
  }
}
