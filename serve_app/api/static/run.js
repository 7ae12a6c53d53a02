// One edit on the page: its progress, its rows of outputs, and its buttons.

import { ApiError, streamEdit } from "./api.js";
import { curlCall, pythonCall } from "./calls.js";
import { copy } from "./clipboard.js";
import { openCompare } from "./compare.js";
import { announce, clone, counted, hide, show } from "./dom.js";
import { Output } from "./output.js";
import { zip } from "./zip.js";

const COPIED_MS = 2000;
const SAVED_MS = 60_000;

export class Run {
  element = clone("run-template");
  #call;
  #key;
  #handlers;
  #outputs = [];
  #originals = [];
  #abort = new AbortController();
  #started = performance.now();
  #seed = null;

  /**
   * `call`: { pictures, fields } from the form. `handlers`: `again` is called to start the same edit again, `removed`
   * after the user has removed this one.
   */
  constructor(call, key, handlers) {
    this.#call = call;
    this.#key = key;
    this.#handlers = handlers;
    this.#heading.textContent = call.fields.prompt;
    this.#find(".facts").textContent = facts(call);
    this.element.setAttribute("aria-label", `Edit: ${call.fields.prompt}`);
    this.#layRows();
    this.#on("cancel", () => this.#abort.abort());
    this.#on("again", () => this.#again());
    this.#on("download", () => this.#downloadAll());
    this.#on("curl", (button) => this.#copy(button, curlCall));
    this.#on("python", (button) => this.#copy(button, pythonCall));
    this.#on("remove", () => this.#remove());
  }

  async start() {
    this.#say(`Sending ${counted(this.#call.pictures.length, "picture")}`);
    try {
      for await (const event of streamEdit(this.#call, this.#key.value, this.#abort.signal)) this.#take(event);
      this.#end("done", `Done in ${this.#seconds()} s`);
    } catch (error) {
      if (this.#abort.signal.aborted) this.#end("cancelled", "Cancelled");
      else this.#fail(error);
    }
  }

  // --- events ---

  #take(event) {
    const place = event.input_index * this.#n + event.variant_index;
    if (event.type === "image_edit.progress") this.#progress(event);
    if (event.type === "image_edit.partial_image") this.#outputs[place].preview(event);
    if (event.type === "image_edit.completed") this.#complete(place, event);
  }

  #complete(place, event) {
    const output = this.#outputs[place];
    output.complete(event);
    this.#seed = event.seed - place;
    announce(`${output.label} is done, ${this.#done.length} of ${this.#outputs.length}`);
    this.#button("download").hidden = this.#done.length < 2;
  }

  #progress({ steps_done, steps, place }) {
    const bar = this.#find("progress");
    if (place > 0) {
      bar.removeAttribute("value");
      this.#say(place === 1 ? "Next in the queue" : `Place ${place} in the queue`);
      return;
    }
    bar.max = steps;
    bar.value = steps_done;
    this.#say(`Step ${steps_done} of ${steps} · ${this.#seconds()} s`);
  }

  #fail(error) {
    const isBug = !(error instanceof ApiError);
    this.#find(".problem").textContent = isBug ? `This page failed: ${error.message}` : error.message;
    this.#end("failed", "Failed");
    if (isBug) throw error;
    if (error.status === 401) this.#key.refuse(error);
  }

  #end(state, text) {
    this.element.dataset.state = state;
    for (const output of this.#outputs) output.stop();
    this.#find(".state").textContent = text;
    announce(`${text}, ${this.#done.length} of ${counted(this.#outputs.length, "output")}`);
    hide(this.#button("cancel"), this.#heading);
    this.#button("again").hidden = this.#done.length === this.#outputs.length;
    this.#button("remove").hidden = false;
  }

  #say(text) {
    const state = this.#find(".state");
    // Announce the queue and the start of the steps to screen readers, but not every step.
    if (text.split(" ")[0] !== state.textContent.split(" ")[0]) announce(text);
    state.textContent = text;
  }

  // --- rows ---

  #layRows() {
    const stems = uniqueStems(this.#call.pictures);
    const rows = this.#find(".rows");
    rows.style.setProperty("--columns", this.#n + 1);
    this.#call.pictures.forEach(({ file, name }, i) => {
      const row = clone("row-template");
      row.querySelector("h3").textContent = name;
      const original = this.#original(row.querySelector(".original"), file);
      for (let j = 0; j < this.#n; j++) {
        const label = `${name}, variant ${j + 1}`;
        const caption = `Variant ${j + 1}`;
        const open = (output) => openCompare(this.#done, output);
        const output = new Output({ label, caption, stem: `${stems[i]}-${j + 1}`, original, open });
        this.#outputs.push(output);
        row.querySelector("ul").append(output.element);
      }
      rows.append(row);
    });
  }

  #original(tile, file) {
    const url = URL.createObjectURL(file);
    const picture = tile.querySelector("img");
    picture.alt = `Original of ${file.name}`;
    picture.addEventListener("load", () => {
      // Reserve the space that the outputs will need, before the first preview arrives.
      const { naturalWidth, naturalHeight } = picture;
      tile.closest(".row").style.setProperty("--ratio", naturalWidth / naturalHeight);
    });
    show(tile, file, url);
    const original = { url, picture };
    this.#originals.push(original);
    return original;
  }

  // --- buttons ---

  async #downloadAll() {
    const archive = await zip(this.#done.map(({ name, blob }) => ({ name, blob })));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(archive);
    link.download = "image-edits.zip";
    link.click();
    // Not at once, since browsers start to save the file later.
    setTimeout(() => URL.revokeObjectURL(link.href), SAVED_MS);
  }

  async #copy(button, makeCall) {
    // With the edit's random seed, so that the copied call reproduces these pictures.
    const seed = this.#seed === null ? {} : { seed: String(this.#seed) };
    const call = { ...this.#call, fields: { ...this.#call.fields, ...seed } };
    const label = (button.dataset.label ??= button.textContent);
    await copy(makeCall(call, this.#key.needed));
    announce(`${label}: copied`);
    button.textContent = "Copied";
    setTimeout(() => {
      button.textContent = label;
    }, COPIED_MS);
  }

  /** Start the same edit again. This one is removed, unless it has outputs. */
  #again() {
    if (!this.#done.length) this.#dispose();
    this.#handlers.again();
  }

  #remove() {
    this.#dispose();
    this.#handlers.removed();
  }

  #dispose() {
    this.element.remove();
    for (const { url } of this.#originals) URL.revokeObjectURL(url);
    for (const output of this.#outputs) output.release();
  }

  // --- parts ---

  get #n() {
    return Number(this.#call.fields.n);
  }

  get #done() {
    return this.#outputs.filter((output) => output.done);
  }

  get #heading() {
    return this.#find("h2");
  }

  #seconds() {
    return ((performance.now() - this.#started) / 1000).toFixed(1);
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  #button(name) {
    return this.#find(`[data-do=${name}]`);
  }

  #on(name, act) {
    const button = this.#button(name);
    button.addEventListener("click", () => act(button));
  }
}

function facts({ pictures, fields }) {
  const { n, size, num_inference_steps: steps, guidance_scale: guidance, seed, negative_prompt: negative } = fields;
  const said = [`${counted(pictures.length, "picture")} × ${counted(Number(n), "variant")}`];
  if (size) said.push(`size ${size}`);
  if (steps) said.push(counted(Number(steps), "step"));
  if (guidance) said.push(`guidance ${guidance}`);
  if (seed) said.push(`seed ${seed}`);
  if (negative) said.push(`without “${negative}”`);
  return said.join(" · ");
}

/** Return the file names without extensions. Pictures with the same name get their number as a suffix. */
function uniqueStems(pictures) {
  const stems = pictures.map(({ name }) => name.replace(/\.[^.]*$/, "") || name);
  return stems.map((stem, i) => (stems.filter((other) => other === stem).length > 1 ? `${stem}_${i + 1}` : stem));
}
