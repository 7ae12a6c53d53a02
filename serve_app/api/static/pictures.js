// What the next edit looks at: its pictures and its references.

import { element } from "./dom.js";
import { Shelf } from "./shelf.js";
import { takeFiles } from "./transfer.js";

export class Pictures {
  #pictures;
  #references;

  /** `limits`: the server's, so that the page refuses pictures that the server would refuse after the upload. */
  constructor(limits) {
    const changed = () => this.#changed();
    this.#pictures = new Shelf(element("pictures-field"), {
      ...limits,
      noun: "picture",
      most: limits.max_images,
      otherBytes: () => this.#references.bytes,
      changed,
    });
    this.#references = new Shelf(element("references-field"), {
      ...limits,
      noun: "reference",
      most: 0,
      otherBytes: () => this.#pictures.bytes,
      changed,
    });
    this.#references.input.accept = this.#pictures.input.accept;
    takeFiles((files, target) => this.#take(files, target));
    changed();
  }

  /** Show what the served model can do. `model`: from the server. */
  offer({ max_references }) {
    this.#references.most = max_references ?? 0;
    element("references-field").hidden = !max_references;
  }

  /** Return the files of a request in order, each as { field, file, name }. */
  get files() {
    const files = this.#pictures.chosen.map(({ file }) => ({ field: "images", file, name: file.name }));
    for (const { file } of this.#references.chosen) files.push({ field: "references", file, name: file.name });
    return files;
  }

  #take(files, target) {
    if (element("references-field").contains(target)) this.#references.add(files);
    else this.#pictures.add(files);
  }

  #changed() {
    this.#references.chosen.forEach(({ file, item }, i) => {
      // As the model's prompt names them: the first is the picture that is edited.
      item.querySelector(".number").textContent = `Picture ${i + 2}`;
      item.querySelector("img").alt = `Picture ${i + 2}: ${file.name}`;
    });
    // `required` cannot be used, since the input is cleared after each choice.
    this.#pictures.input.setCustomValidity(this.#pictures.chosen.length ? "" : "Choose at least one picture");
  }
}
