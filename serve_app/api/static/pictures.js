// What the next edit looks at: its pictures with their masks, and its references.

import { announce, element } from "./dom.js";
import { blankMask, fullMask, maskFile, paint } from "./mask.js";
import { uniqueStems } from "./names.js";
import { loadMask, openPainter } from "./painter.js";
import { Shelf } from "./shelf.js";
import { takeFiles } from "./transfer.js";

export class Pictures {
  #pictures;
  #references;
  #takesMasks = false;
  #lastMask = Promise.resolve();

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
  offer({ max_references, masks }) {
    this.#references.most = max_references ?? 0;
    element("references-field").hidden = !max_references;
    this.#takesMasks = Boolean(masks);
    this.#changed();
  }

  /** Return the files of a request in order, each as { field, file, name }. Raises an Error, for the user. */
  async files() {
    // The file of a large mask takes a moment after its dialog has closed.
    await this.#lastMask;
    const stems = uniqueStems(this.#pictures.chosen.map(({ file }) => file.name));
    const files = this.#pictures.chosen.map(({ file, before }) => ({ field: "images", file, name: file.name, before }));
    for (const { file } of this.#references.chosen) files.push({ field: "references", file, name: file.name });
    if (!this.#hasMasks) return files;
    // The server takes a mask for each picture, or none at all.
    for (const [i, { file, mask }] of this.#pictures.chosen.entries()) {
      const made = mask?.file ?? (await fullMask(await sizeOf(file)));
      files.push({ field: "mask", file: made, name: made.name ?? `${stems[i]}-mask.png` });
    }
    return files;
  }

  /** Edit a file next. `before`: the files from which it was made, the oldest first. */
  goOn(file, before) {
    this.#pictures.replace(file, before);
  }

  get #hasMasks() {
    return this.#pictures.chosen.some(({ mask }) => mask);
  }

  #take(files, target) {
    if (element("mask").open) loadMask(files[0]);
    else if (element("references-field").contains(target)) this.#references.add(files);
    else this.#pictures.add(files);
  }

  #changed() {
    this.#references.chosen.forEach(({ file, item }, i) => {
      // As the model's prompt names them: the first is the picture that is edited.
      item.querySelector(".number").textContent = `Picture ${i + 2}`;
      item.querySelector("img").alt = `Picture ${i + 2}: ${file.name}`;
    });
    for (const picture of this.#pictures.chosen) this.#prepareMask(picture);
    this.#check();
  }

  /** Set the field's validity: `required` cannot be used, since the input is cleared after each choice. */
  #check() {
    const unseen = this.#pictures.chosen.find(({ item }) => item.querySelector("img").hidden);
    let problem = "";
    if (!this.#pictures.chosen.length) problem = "Choose at least one picture";
    else if (this.#hasMasks && unseen) {
      problem = `This browser cannot read ${unseen.file.name}. Edit it without pictures that have masks`;
    }
    this.#pictures.input.setCustomValidity(problem);
  }

  // --- masks ---

  #prepareMask(picture) {
    const button = picture.item.querySelector("[data-do=mask]");
    button.hidden = !this.#takesMasks;
    if (button.onclick) return;
    button.onclick = () => {
      this.#lastMask = this.#editMask(picture).catch(({ message }) => this.#pictures.complain(message));
    };
    button.setAttribute("aria-label", `Mask of ${picture.file.name}`);
    picture.item.querySelector("img").addEventListener("error", () => this.#check());
  }

  async #editMask(picture) {
    const { file, url, mask } = picture;
    const size = await sizeOf(file);
    const operations = await openPainter({ name: file.name, url, size }, mask?.operations ?? []);
    if (!operations) return;
    const made = await maskFile(operations, size);
    picture.mask = made && { operations, file: made };
    showMask(picture, size);
    announce(made ? `${file.name} has a mask` : `${file.name} has no mask`);
    this.#check();
  }
}

/** Show a picture's mask on its thumbnail, or that it has none. */
function showMask({ item, file, mask }, size) {
  item.querySelector("canvas")?.remove();
  item.classList.toggle("masked", Boolean(mask));
  const button = item.querySelector("[data-do=mask]");
  button.textContent = mask ? "Masked" : "Mask";
  button.setAttribute("aria-label", mask ? `Masked: change the mask of ${file.name}` : `Mask of ${file.name}`);
  if (!mask) return;
  const canvas = blankMask(size);
  paint(canvas, mask.operations);
  item.querySelector("img").after(canvas);
}

/** Return the size of a picture as it is seen, turned upright. */
async function sizeOf(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new Error(`This browser cannot read ${file.name}, so there can be no mask beside it.`);
  const { width, height } = bitmap;
  bitmap.close();
  return { width, height };
}
