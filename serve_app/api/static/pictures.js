// What the next edit looks at: its pictures with their masks, and its references.

import { announce, element } from "./dom.js";
import { nameSubmit } from "./form.js";
import { blankMask, fullMask, load, maskFile, paint } from "./mask.js";
import { uniqueStems } from "./names.js";
import { loadMask, openPainter } from "./painter.js";
import { Shelf } from "./shelf.js";
import { t, UserError, write } from "./texts.js";
import { takeFiles } from "./transfer.js";

export class Pictures {
  #pictures;
  #references;
  #takesMasks = false;
  #generates = false;
  #lastMask = Promise.resolve();
  #heard;

  /**
   * `limits`: the server's, so that the page refuses pictures that the server would refuse after the upload. `show`:
   * called with the chosen pictures after every change.
   */
  constructor(limits, show) {
    this.#heard = [() => show(this.#pictures.chosen)];
    const changed = () => this.#changed();
    this.#pictures = new Shelf(element("pictures-field"), {
      ...limits,
      counted: (count) => t("count.pictures", { count }),
      most: limits.max_images,
      otherBytes: () => this.#references.bytes,
      changed,
    });
    this.#references = new Shelf(element("references-field"), {
      ...limits,
      counted: (count) => t("count.references", { count }),
      most: 0,
      otherBytes: () => this.#pictures.bytes,
      changed,
    });
    this.#references.input.accept = this.#pictures.input.accept;
    takeFiles(
      (files, target) => this.#take(files, target),
      (target) => this.#shelfOf(target).complain(() => t("shelf.address")),
    );
    element("camera").addEventListener("change", ({ target }) => {
      this.#pictures.add(target.files);
      // Without this, a second photo of the same name would be no change event.
      target.value = "";
    });
    changed();
  }

  /** Call `hear` after every change from now on. */
  listen(hear) {
    this.#heard.push(hear);
  }

  get count() {
    return this.#pictures.chosen.length;
  }

  /** What is chosen: { pictures: [{ file, before, mask }], references: [file] }, where a mask is a file or null. */
  get state() {
    const kept = ({ file, before, mask }) => ({ file, before, mask: mask?.file ?? null });
    const pictures = this.#pictures.chosen.map(kept);
    return { pictures, references: this.#references.chosen.map(({ file }) => file) };
  }

  /** Choose what a `state` says in place of what is chosen. */
  async fill({ pictures, references }) {
    this.#pictures.put(pictures);
    this.#references.put(references.map((file) => ({ file, before: [] })));
    const masks = pictures.map(({ mask }) => mask);
    this.#lastMask = this.#loadMasks(masks).catch((error) => this.#pictures.complain(() => error.message));
    await this.#lastMask;
  }

  /** Show what the served model can do. `model`: from the server. */
  offer({ max_references, masks, generates }) {
    this.#references.most = max_references ?? 0;
    element("references-field").hidden = !max_references;
    this.#takesMasks = Boolean(masks);
    this.#generates = Boolean(generates);
    element("no-pictures").hidden = !this.#generates;
    this.#changed();
  }

  /** Return the files of a request in order, each as { field, file, name, before, isFull }. Raises a UserError. */
  async files() {
    // The file of a large mask takes a moment after its dialog has closed.
    await this.#lastMask;
    const stems = uniqueStems(this.#pictures.chosen.map(({ file }) => file.name));
    const files = this.#pictures.chosen.map(({ file, before }) => ({ field: "images", file, name: file.name, before }));
    // Those that were chosen for another model are hidden.
    const references = element("references-field").hidden ? [] : this.#references.chosen;
    for (const { file } of references) files.push({ field: "references", file, name: file.name });
    if (!this.#hasMasks) return files;
    // The server takes a mask for each picture, or none at all.
    for (const [i, { file, mask }] of this.#pictures.chosen.entries()) {
      const made = mask?.file ?? (await fullMask(await sizeOf(file)));
      files.push({ field: "mask", file: made, name: made.name ?? `${stems[i]}-mask.png`, isFull: !mask });
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
    else this.#shelfOf(target).add(files);
  }

  #shelfOf(target) {
    return element("references-field").contains(target) ? this.#references : this.#pictures;
  }

  #changed() {
    this.#references.chosen.forEach(({ file, item }, i) => {
      // As the model's prompt names them: the first is the picture that is edited.
      const number = i + 2;
      write(item.querySelector(".number"), () => t("shelf.number", { number }));
      write(item.querySelector("img"), () => t("shelf.numbered", { number, name: file.name }), "alt");
    });
    for (const picture of this.#pictures.chosen) this.#prepareMask(picture);
    this.#check();
    for (const hear of this.#heard) hear();
  }

  /** Set the field's validity: `required` cannot be used, since the input is cleared after each choice. */
  #check() {
    const unseen = this.#pictures.chosen.find(({ item }) => item.querySelector("img").hidden);
    let problem = () => "";
    const isNeeded = !this.#generates || this.#references.chosen.length;
    nameSubmit(this.count || isNeeded);
    if (!this.count && isNeeded) problem = () => t("form.pictures.none");
    else if (this.#hasMasks && unseen) problem = () => t("mask.unseen", { name: unseen.file.name });
    write(this.#pictures.input, problem, "validity");
  }

  // --- masks ---

  #prepareMask(picture) {
    const button = picture.item.querySelector("[data-do=mask]");
    button.hidden = !this.#takesMasks;
    if (button.onclick) return;
    button.onclick = () => {
      this.#lastMask = this.#editMask(picture).catch((error) => this.#pictures.complain(() => error.message));
    };
    nameButton(picture);
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
    announce(made ? t("mask.made", { name: file.name }) : t("mask.none", { name: file.name }));
    this.#changed();
  }

  /** Give the chosen pictures their masks: files, or null. */
  async #loadMasks(masks) {
    for (const [i, picture] of [...this.#pictures.chosen].entries()) {
      if (!masks[i]) continue;
      const size = await sizeOf(picture.file);
      picture.mask = { operations: [await load(masks[i], size)], file: masks[i] };
      showMask(picture, size);
    }
    this.#changed();
  }
}

/** Return the state of Pictures that made the files of a request. */
export function stateOf(files) {
  const [images, references, masks] = ["images", "references", "mask"].map((field) =>
    files.filter((each) => each.field === field),
  );
  const maskOf = (i) => (masks[i] && !masks[i].isFull ? masks[i].file : null);
  return {
    pictures: images.map(({ file, before }, i) => ({ file, before, mask: maskOf(i) })),
    references: references.map(({ file }) => file),
  };
}

/** Show a picture's mask on its thumbnail, or that it has none. */
function showMask(picture, size) {
  const { item, mask } = picture;
  item.querySelector("canvas")?.remove();
  item.classList.toggle("masked", Boolean(mask));
  nameButton(picture);
  if (!mask) return;
  const canvas = blankMask(size);
  paint(canvas, mask.operations);
  item.querySelector("img").after(canvas);
}

/** Name the button of a picture's mask. */
function nameButton({ item, file: { name }, mask }) {
  const button = item.querySelector("[data-do=mask]");
  write(button, () => (mask ? t("mask.masked") : t("mask.open")));
  write(button, () => (mask ? t("mask.change", { name }) : t("mask.title", { name })), "aria-label");
}

/** Return the size of a picture as it is seen, turned upright. Raises a UserError. */
async function sizeOf(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) throw new UserError(() => t("mask.unread", { name: file.name }));
  const { width, height } = bitmap;
  bitmap.close();
  return { width, height };
}
