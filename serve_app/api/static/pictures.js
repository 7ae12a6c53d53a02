// The pictures of the next edit, which users choose, drop or paste.

import { announce, clone, counted, element, show } from "./dom.js";

const MEBIBYTE = 2 ** 20;

export class Pictures {
  #limits;
  #chosen = [];

  /** `limits`: the server's, so that the page refuses pictures that the server would refuse after the upload. */
  constructor(limits) {
    this.#limits = limits;
    const input = element("files");
    input.addEventListener("change", () => {
      this.add(input.files);
      // Without this, choosing a removed file again would be no change event.
      input.value = "";
    });
    takeDropped((files) => this.add(files));
    takePasted((files) => this.add(files));
    this.#check();
  }

  /** The chosen pictures in order, each as { file, name }. */
  get all() {
    return this.#chosen.map(({ file }) => ({ file, name: file.name }));
  }

  add(files) {
    const problems = [];
    let added = 0;
    for (const file of files) {
      const problem = this.#problem(file);
      if (problem) problems.push(problem);
      else added = this.#chosen.push(this.#item(file));
    }
    if (added) announce(`${counted(added, "picture")} chosen`);
    element("files-problem").textContent = problems.join(" ");
    this.#check();
  }

  #problem(file) {
    const limits = this.#limits;
    if (file.type && !file.type.startsWith("image/")) return `${file.name} is not a picture.`;
    if (this.#chosen.length >= limits.max_images) return `${file.name}: at most ${limits.max_images} pictures.`;
    if (file.size > limits.max_file_bytes) return `${file.name} is larger than ${mebibytes(limits.max_file_bytes)}.`;
    const bytes = this.#chosen.reduce((sum, chosen) => sum + chosen.file.size, file.size);
    if (bytes > limits.max_request_bytes) {
      return `${file.name}: with it, the pictures are larger than ${mebibytes(limits.max_request_bytes)} together.`;
    }
    return null;
  }

  #item(file) {
    const url = URL.createObjectURL(file);
    const item = clone("picture-template");
    const picture = { file, url, item };
    show(item, file, url);
    item.title = file.name;
    item.querySelector("img").alt = file.name;
    const button = item.querySelector("button");
    button.setAttribute("aria-label", `Remove ${file.name}`);
    button.addEventListener("click", () => this.#remove(picture));
    element("pictures").append(item);
    return picture;
  }

  #remove(picture) {
    const neighbour = picture.item.nextElementSibling ?? picture.item.previousElementSibling;
    (neighbour?.querySelector("button") ?? element("files")).focus();
    picture.item.remove();
    URL.revokeObjectURL(picture.url);
    this.#chosen = this.#chosen.filter((other) => other !== picture);
    announce(`${picture.file.name} removed`);
    element("files-problem").textContent = "";
    this.#check();
  }

  /** Set the field's validity: `required` cannot be used, since the input is cleared after each choice. */
  #check() {
    element("files").setCustomValidity(this.#chosen.length ? "" : "Choose at least one picture");
  }
}

/** Call `take` with the files that are dropped anywhere on the page. */
function takeDropped(take) {
  const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
  const mark = (over) => document.body.classList.toggle("dragging", over);
  // The whole page accepts them, since the browser would otherwise open a picture that misses the field.
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false);
  });
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!holdsFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

/** Call `take` with the files that are pasted. */
function takePasted(take) {
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });
}

function mebibytes(bytes) {
  return `${Number((bytes / MEBIBYTE).toPrecision(2))} MiB`;
}
