// A shelf of picture files that users choose, and may take out again.

import { announce, clone, show } from "./dom.js";
import { makeMovable, moveItem } from "./moving.js";
import { t, write } from "./texts.js";

const MEBIBYTE = 2 ** 20;

export class Shelf {
  /** The chosen pictures in order, each as { file, url, item, before }. */
  chosen = [];
  #field;
  #rules;

  /**
   * `field`: the element that holds the shelf. `rules`: { counted, most, max_file_bytes, max_request_bytes, otherBytes,
   * changed }: a function that returns a number of the shelf's files in words, the server's limits, a function that
   * returns the bytes of the request's other files, and a function that is called after every change.
   */
  constructor(field, rules) {
    this.#field = field;
    this.#rules = rules;
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      // Without this, choosing a removed file again would be no change event.
      this.input.value = "";
    });
  }

  get input() {
    return this.#field.querySelector("input");
  }

  get bytes() {
    return this.chosen.reduce((sum, { file }) => sum + file.size, 0);
  }

  set most(count) {
    this.#rules.most = count;
  }

  add(files) {
    const problems = [];
    let added = 0;
    for (const file of files) {
      const problem = this.#problem(file);
      if (problem) problems.push(problem);
      else added = this.chosen.push(this.#item(file));
    }
    if (added) announce(t("shelf.chosen", { things: this.#rules.counted(added) }));
    this.complain(() => problems.map((problem) => problem()).join(" "));
    this.#rules.changed();
  }

  /** Put a file in place of all that are chosen. `before`: the files from which it was made, the oldest first. */
  replace(file, before) {
    const former = this.chosen;
    this.chosen = [];
    this.add([file]);
    if (!this.chosen.length) {
      this.chosen = former;
      return;
    }
    this.chosen[0].before = before;
    for (const picture of former) this.#drop(picture);
  }

  /** Put pictures that were chosen before, [{ file, before }], in place of all that are chosen. */
  put(pictures) {
    for (const picture of this.chosen) this.#drop(picture);
    this.chosen = pictures.map(({ file, before }) => Object.assign(this.#item(file), { before }));
    this.complain(() => "");
    this.#rules.changed();
  }

  /** Show what is wrong. `make`: function that returns the message. */
  complain(make) {
    write(this.#field.querySelector(".problem"), make);
  }

  /** Return a function that returns why a file cannot be added, or null if it can. */
  #problem({ name, type, size }) {
    const { counted, most, max_file_bytes, max_request_bytes, otherBytes } = this.#rules;
    if (type && !type.startsWith("image/")) return () => t("shelf.other", { name });
    if (this.chosen.length >= most) return () => t("shelf.full", { name, things: counted(most) });
    if (size > max_file_bytes) return () => t("shelf.large", { name, size: mebibytes(max_file_bytes) });
    if (size + this.bytes + otherBytes() > max_request_bytes) {
      return () => t("shelf.sum", { name, size: mebibytes(max_request_bytes) });
    }
    return null;
  }

  #item(file) {
    const url = URL.createObjectURL(file);
    const item = clone("picture-template");
    const picture = { file, url, item, before: [] };
    show(item, file, url);
    item.title = file.name;
    item.querySelector("img").alt = file.name;
    write(item.querySelector("[data-do=move]"), () => t("shelf.move", { name: file.name }), "aria-label");
    const button = item.querySelector("[data-do=remove]");
    write(button, () => t("shelf.remove", { name: file.name }), "aria-label");
    button.addEventListener("click", () => this.#remove(picture));
    makeMovable(item, (by) => this.#move(picture, by));
    this.#field.querySelector("ul").append(item);
    return picture;
  }

  #move(picture, by) {
    const place = this.chosen.indexOf(picture) + moveItem(picture.item, by);
    if (this.chosen[place] === picture) return;
    this.chosen = this.chosen.filter((other) => other !== picture).toSpliced(place, 0, picture);
    announce(t("shelf.moved", { name: picture.file.name, place: place + 1, all: this.chosen.length }));
    this.#rules.changed();
  }

  #remove(picture) {
    const neighbour = picture.item.nextElementSibling ?? picture.item.previousElementSibling;
    (neighbour?.querySelector("[data-do=remove]") ?? this.input).focus();
    this.#drop(picture);
    this.chosen = this.chosen.filter((other) => other !== picture);
    announce(t("shelf.removed", { name: picture.file.name }));
    this.complain(() => "");
    this.#rules.changed();
  }

  #drop({ item, url }) {
    item.remove();
    URL.revokeObjectURL(url);
  }
}

function mebibytes(bytes) {
  return `${Number((bytes / MEBIBYTE).toPrecision(2))} MiB`;
}
