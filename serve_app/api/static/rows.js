// The rows of an edit: each picture with its outputs.

import { openCompare } from "./compare.js";
import { clone, show } from "./dom.js";
import { uniqueStems } from "./names.js";
import { Output } from "./output.js";

export class Rows {
  /** In the order of the API. */
  outputs = [];
  #originals = [];

  /** `parent`: the element for the rows. `pictures`: [{ file, name }]; `n`: the variants of each. */
  constructor(parent, pictures, n) {
    const stems = uniqueStems(pictures.map(({ name }) => name));
    parent.style.setProperty("--columns", n + 1);
    pictures.forEach(({ file, name }, i) => {
      const row = clone("row-template");
      row.querySelector("h3").textContent = name;
      const original = this.#original(row.querySelector(".original"), file);
      for (let j = 0; j < n; j++) {
        const label = `${name}, variant ${j + 1}`;
        const open = (output) => openCompare(this.done, output);
        const output = new Output({ label, caption: `Variant ${j + 1}`, stem: `${stems[i]}-${j + 1}`, original, open });
        this.outputs.push(output);
        row.querySelector("ul").append(output.element);
      }
      parent.append(row);
    });
  }

  get done() {
    return this.outputs.filter((output) => output.done);
  }

  /** Release the memory of the pictures. */
  release() {
    for (const { url } of this.#originals) URL.revokeObjectURL(url);
    for (const output of this.outputs) output.release();
  }

  #original(tile, file) {
    const url = URL.createObjectURL(file);
    const picture = tile.querySelector("img");
    picture.alt = `Original of ${file.name}`;
    picture.addEventListener("load", () => {
      // Reserve the space that the outputs will need, before the first preview arrives.
      const { naturalWidth, naturalHeight } = picture;
      tile.closest(".row").style.setProperty("--ratio", naturalWidth / naturalHeight);
      tile.querySelector(".note").textContent = `${naturalWidth} × ${naturalHeight}`;
    });
    show(tile, file, url);
    const original = { url, picture };
    this.#originals.push(original);
    return original;
  }
}
