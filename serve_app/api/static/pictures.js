// The pictures of the next edit.

import { element } from "./dom.js";
import { Shelf } from "./shelf.js";
import { takeFiles } from "./transfer.js";

export class Pictures {
  #pictures;

  /** `limits`: the server's, so that the page refuses pictures that the server would refuse after the upload. */
  constructor(limits) {
    this.#pictures = new Shelf(element("pictures-field"), {
      ...limits,
      noun: "picture",
      most: limits.max_images,
      changed: () => this.#check(),
    });
    takeFiles((files) => this.#pictures.add(files));
    this.#check();
  }

  /** Return the files of a request in order, each as { field, file, name }. */
  get files() {
    return this.#pictures.chosen.map(({ file }) => ({ field: "images", file, name: file.name }));
  }

  /** Set the field's validity: `required` cannot be used, since the input is cleared after each choice. */
  #check() {
    this.#pictures.input.setCustomValidity(this.#pictures.chosen.length ? "" : "Choose at least one picture");
  }
}
