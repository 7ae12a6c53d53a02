// One edit on the page: its progress, its rows of outputs, and its buttons.

import { ApiError, streamEdit } from "./api.js";
import { curlCall, pythonCall } from "./calls.js";
import { copy } from "./clipboard.js";
import { announce, clone, hide, tell } from "./dom.js";
import { facts, instruction, withFileNames } from "./names.js";
import { Rows } from "./rows.js";
import { save } from "./saving.js";
import { fill, t, write } from "./texts.js";

const COPIED_MS = 2000;
const SHORT_CHARS = 80;

export class Run {
  element = clone("run-template");
  #call;
  #key;
  #handlers;
  #rows;
  #abort = new AbortController();
  #started = performance.now();
  #seed = null;
  /** What is said of its state: the key of the text. */
  #said = "";

  /**
   * `call`: { files, fields } from the form. `handlers`: `again` is called to start the same edit again, `refused` with
   * the error, and a function that returns its message, if the server will not take it, `removed` if the user wants this one removed, `goOn` with a
   * file to edit and those from which it was made, and `sameSeed` with a seed for the next edit.
   */
  constructor(call, key, handlers) {
    this.#call = call;
    this.#key = key;
    this.#handlers = handlers;
    this.#heading.textContent = instruction(call);
    write(this.#find(".facts"), () => facts(call));
    write(this.element, () => t("run.title", { prompt: this.prompt }), "aria-label");
    this.#rows = new Rows(this.#find(".rows"), this.#files("images"), this.#n, handlers);
    this.#button("download").hidden = this.#outputs.length < 2;
    this.#button("masks").hidden = !this.#files("mask").length;
    this.#foldTitle();
    this.#on("cancel", () => this.#abort.abort());
    this.#on("again", () => this.#again());
    this.#on("download", () => save(this.#done, "image-edits.zip"));
    this.#on("masks", () => save(this.#files("mask").map(({ name, file }) => ({ name, blob: file })), "masks.zip"));
    this.#on("curl", (button) => this.#copy(button, curlCall));
    this.#on("python", (button) => this.#copy(button, pythonCall));
    this.#on("remove", () => this.#handlers.removed());
  }

  /** The instruction, shortened. */
  get prompt() {
    const prompt = instruction(this.#call);
    return prompt.length > SHORT_CHARS ? `${prompt.slice(0, SHORT_CHARS)}…` : prompt;
  }

  async start() {
    const count = this.#files("images").length;
    this.#say("run.sending", () => ({ pictures: t("count.pictures", { count }) }));
    try {
      for await (const event of streamEdit(this.#call, this.#key.value, this.#abort.signal)) this.#take(event);
      const seconds = this.#seconds();
      this.#end("done", () => t("run.done", { seconds }));
    } catch (error) {
      if (this.#abort.signal.aborted) this.#end("cancelled", () => t("run.cancelled"));
      else this.#fail(error);
    }
  }

  focus() {
    this.#heading.focus();
  }

  /** Release the memory of the pictures. */
  release() {
    this.#rows.release();
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
    announce(t("output.done", { label: output.label, done: this.#done.length, all: this.#outputs.length }));
    this.#button("download").disabled = false;
  }

  #progress({ steps_done, steps, place }) {
    const bar = this.#find("progress");
    if (place > 0) {
      bar.removeAttribute("value");
      this.#say(place === 1 ? "run.next" : "run.place", () => ({ place }));
      return;
    }
    bar.max = steps;
    bar.value = steps_done;
    const seconds = this.#seconds();
    this.#say("run.step", () => ({ done: steps_done, steps, seconds }));
  }

  #fail(error) {
    const isBug = !(error instanceof ApiError);
    const make = () => (isBug ? t("run.bug", { reason: error.message }) : withFileNames(error, this.#call.files));
    tell(this.#find(".problem"), error, make);
    this.#end("failed", () => t("run.failed"));
    if (isBug) throw error;
    if (error.status === 401) this.#key.refuse(error);
    if (error.isRefusal) this.#refuse(error, make);
  }

  /** Leave what the server will never take to the form, which still holds it. */
  #refuse(error, make) {
    this.#button("again").hidden = true;
    if (this.#done.length) return;
    this.#dispose();
    this.#handlers.refused(error, make);
  }

  #end(state, make) {
    this.element.dataset.state = state;
    for (const output of this.#outputs) output.stop();
    write(this.#find(".state"), make);
    const outputs = t("count.outputs", { count: this.#outputs.length });
    announce(t("run.ended", { state: make(), done: this.#done.length, outputs }));
    hide(this.#button("cancel"), this.#heading);
    this.#button("again").hidden = this.#done.length === this.#outputs.length;
    this.#button("remove").disabled = false;
  }

  /** Say how far it is. `values`: function that returns those of the text. */
  #say(key, values) {
    write(this.#find(".state"), () => t(key, values()));
    // Announce the queue and the start of the steps to screen readers, but not every step.
    if (key !== this.#said) announce(t(key, values()));
    this.#said = key;
  }

  // --- buttons ---

  /** Show only the first lines of a long instruction, and a button for all of it. */
  #foldTitle() {
    const button = this.#button("fold");
    const texts = [this.#heading, this.#find(".facts")];
    const isCut = () => texts.some(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight);
    const isOpen = () => button.getAttribute("aria-expanded") === "true";
    const observer = new ResizeObserver(() => (button.hidden = !isOpen() && !isCut()));
    for (const text of texts) observer.observe(text);
    write(button, () => (isOpen() ? t("run.fold") : t("run.unfold")));
    this.#on("fold", () => {
      button.setAttribute("aria-expanded", String(!isOpen()));
      fill(button);
    });
  }

  async #copy(button, makeCall) {
    // With the edit's random seed, so that the copied call reproduces these pictures.
    const seed = this.#seed === null ? {} : { seed: String(this.#seed) };
    const call = { ...this.#call, fields: { ...this.#call.fields, ...seed } };
    await copy(makeCall(call, this.#key.needed));
    const name = () => t(button.dataset.text);
    announce(t("run.copied.what", { what: name() }));
    write(button, () => t("run.copied"));
    setTimeout(() => write(button, name), COPIED_MS);
  }

  /** Start the same edit again. This one is removed, unless it has outputs. */
  #again() {
    if (!this.#done.length) this.#dispose();
    this.#handlers.again();
  }

  #dispose() {
    this.element.remove();
    this.release();
  }

  // --- parts ---

  get #n() {
    return Number(this.#call.fields.n);
  }

  get #outputs() {
    return this.#rows.outputs;
  }

  get #done() {
    return this.#rows.done;
  }

  get #heading() {
    return this.#find("h2");
  }

  #files(field) {
    return this.#call.files.filter((file) => file.field === field);
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
