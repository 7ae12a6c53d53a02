// The rows of an edit: each picture with its outputs.

import { openCompare } from "./compare.js";
import { clone, show } from "./dom.js";
import { showLineage } from "./lineage.js";
import { uniqueStems } from "./names.js";
import { Output } from "./output.js";
import { t, write } from "./texts.js";

export class Rows {
  /** In the order of the API. */
  outputs = [];
  #urls = [];

  /**
   * `parent`: the element for the rows. `pictures`: [{ file, name, before }], or none if the outputs are made from a text
   * alone; `n`: the variants of each. `goOn` is called
   * with a file that is to be edited and those from which it was made, `sameSeed` with a seed, `newSeed` with nothing.
   */
  constructor(parent, pictures, n, { goOn, sameSeed, newSeed }) {
    const rows = pictures.length ? pictures : [{ file: null, name: t("rows.created"), before: [] }];
    const stems = pictures.length ? uniqueStems(pictures.map(({ name }) => name)) : ["created"];
    parent.style.setProperty("--columns", pictures.length ? n + 1 : n);
    rows.forEach(({ file, name, before }, i) => {
      const row = clone("row-template");
      row.querySelector("h3").textContent = name;
      this.#urls.push(...showLineage(row.querySelector(".lineage"), before, goOn));
      const original = this.#original(row.querySelector(".original"), file);
      for (let j = 0; j < n; j++) {
        const output = new Output({
          of: name,
          number: j + 1,
          stem: `${stems[i]}-${j + 1}`,
          original,
          open: (shown) => openCompare(this.done, shown),
          goOn: (chosen) => goOn(chosen.file, file ? [...before, file] : before),
          sameSeed,
          newSeed,
        });
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
    for (const url of this.#urls) URL.revokeObjectURL(url);
    for (const output of this.outputs) output.release();
  }

  /** Show the picture that is edited; without one, the outputs are shown alone. */
  #original(tile, file) {
    if (!file) {
      tile.remove();
      return { url: null, picture: { hidden: true } };
    }
    const url = URL.createObjectURL(file);
    const picture = tile.querySelector("img");
    write(picture, () => t("output.original.of", { name: file.name }), "alt");
    picture.addEventListener("load", () => {
      // Reserve the space that the outputs will need, before the first preview arrives.
      const { naturalWidth, naturalHeight } = picture;
      tile.closest(".row").style.setProperty("--ratio", naturalWidth / naturalHeight);
      tile.querySelector(".note").textContent = `${naturalWidth} × ${naturalHeight}`;
    });
    show(tile, file, url);
    this.#urls.push(url);
    return { url, picture };
  }
}
