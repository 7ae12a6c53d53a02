// One edit on the page: its progress, its rows of outputs, and its buttons.

import { ApiError } from "./api.js";
import { curlCall, pythonCall } from "./calls.js";
import { copy } from "./clipboard.js";
import { announce, clone, hide, tell } from "./dom.js";
import { follow, forgetJob } from "./follow.js";
import { foldTexts } from "./fold.js";
import { facts, instruction, withFileNames } from "./names.js";
import { fileOf } from "./output.js";
import { Progress } from "./progress.js";
import { Rows } from "./rows.js";
import { save } from "./saving.js";
import { t, write } from "./texts.js";

const COPIED_MS = 2000;
const SHORT_CHARS = 80;

export class Run {
  element = clone("run-template");
  edit;
  #key;
  #kept;
  #handlers;
  #rows;
  #abort = new AbortController();
  #progress;

  /**
   * `edit`: { id, at, fields, files, job, state, problem, seconds, outputs }: when it was started (ms since the epoch);
   * what was asked for, from the form; the id of its job; "running", or how it ended; why it failed, as { message, code };
   * how long it took; and its finished outputs as { place, file, size, seed, output_format }, where a place is an index in
   * the order of the API. `kept`: where each change of it is kept. `handlers`: `again` is called to start the same edit again,
   * `refused` with the error, and a function that returns its message, if the server will not take it, `removed` if the
   * user wants this one removed, `refill` if the form is to have what it has, `goOn` with a file to edit and those from
   * which it was made, `sameSeed` with a seed for the next edit, `newSeed` if that is to draw one.
   */
  constructor(edit, key, kept, handlers) {
    this.edit = edit;
    this.#key = key;
    this.#kept = kept;
    this.#handlers = handlers;
    this.element.dataset.at = edit.at;
    this.#heading.textContent = instruction(edit);
    write(this.#find(".facts"), () => facts(edit));
    write(this.element, () => t("run.title", { prompt: this.prompt }), "aria-label");
    this.#rows = new Rows(this.#find(".rows"), this.#files("images"), this.#n, handlers);
    this.#button("download").hidden = this.#outputs.length < 2;
    this.#button("masks").hidden = !this.#files("mask").length;
    this.#progress = new Progress(this.#find(".progress"), edit.at);
    foldTexts([this.#heading, this.#find(".facts")], this.#button("fold"));
    for (const output of edit.outputs) this.#show(output);
    if (edit.state !== "running") this.#showEnd();
    this.#on("cancel", () => this.cancel());
    this.#on("refill", () => this.#handlers.refill());
    this.#on("again", () => this.#handlers.again());
    this.#on("download", () => save(this.#done, "image-edits.zip"));
    this.#on("masks", () => save(this.#files("mask").map(({ name, file }) => ({ name, blob: file })), "masks.zip"));
    this.#on("curl", (button) => this.#copy(button, curlCall));
    this.#on("python", (button) => this.#copy(button, pythonCall));
    this.#on("remove", () => this.#handlers.removed());
  }

  /** The instruction, shortened. */
  get prompt() {
    const prompt = instruction(this.edit);
    return prompt.length > SHORT_CHARS ? `${prompt.slice(0, SHORT_CHARS)}…` : prompt;
  }

  /** Whether it runs, or has outputs. */
  get isWorth() {
    return this.edit.state === "running" || this.#done.length > 0;
  }

  /** Start the edit, or go on where it is, if it has not ended. */
  async follow() {
    if (this.edit.state !== "running") return;
    const count = this.#files("images").length;
    if (this.edit.job || !count) this.#progress.say("run.asking");
    else this.#progress.say("run.sending", () => t("run.sending", { pictures: t("count.pictures", { count }) }));
    const hear = {
      started: (job) => {
        this.edit.job = job;
        this.#kept.change(this.edit);
      },
      lost: () => this.#progress.say("run.lost"),
    };
    try {
      const events = follow(this.edit, this.#outputs.length, this.#key, this.#abort.signal, hear);
      for await (const event of events) this.#take(event);
      this.#end("done");
    } catch (error) {
      if (this.#abort.signal.aborted) this.#end("cancelled");
      else if (error.code !== "NOT_FOUND" || !(await this.#takeOver())) this.#fail(error);
    }
  }

  /** Cancel the edit, if it runs. */
  cancel() {
    if (this.edit.state === "running") this.#abort.abort();
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
    if (event.type === "image_edit.progress") this.#progress.show(event);
    if (event.type === "image_edit.partial_image") this.#preview(event);
    if (event.type === "image_edit.completed") this.#complete(event);
    if (event.type === "image_edit.done") this.edit.seconds = event.usage.processing_time_seconds;
  }

  #preview(event) {
    const output = this.#outputs[this.#placeOf(event)];
    // Whoever comes back may have the output already.
    if (!output.done) output.preview({ file: fileOf(event), size: event.size, number: event.partial_image_index + 1 });
  }

  #complete(event) {
    const place = this.#placeOf(event);
    if (this.#outputs[place].done) return;
    const { size, seed, output_format } = event;
    const output = { place, file: fileOf(event), size, seed, output_format };
    this.edit.outputs.push(output);
    this.#kept.change(this.edit, output);
    this.#show(output);
    const { label } = this.#outputs[place];
    announce(t("output.done", { label, done: this.#done.length, all: this.#outputs.length }));
  }

  #show(output) {
    this.#outputs[output.place].complete(output);
    this.#button("download").disabled = false;
  }

  #placeOf({ input_index, variant_index }) {
    return input_index * this.#n + variant_index;
  }

  /** Take over how the edit has ended in another tab, which has its job deleted. Return whether it has. */
  async #takeOver() {
    const edit = await this.#kept.edit(this.edit.id);
    if (!edit || edit.state === "running") return false;
    this.edit = edit;
    for (const output of edit.outputs) this.#show(output);
    this.#showEnd();
    return true;
  }

  #fail(error) {
    const isBug = !(error instanceof ApiError);
    // Without a job, it is what was asked for that the server does not have.
    const isGone = error.code === "NOT_FOUND" && Boolean(this.edit.job);
    const make = () => {
      if (isBug) return t("run.bug", { reason: error.message });
      return isGone ? t("run.gone") : withFileNames(error, this.edit.files);
    };
    this.edit.problem = { message: make(), code: isGone ? null : (error.code ?? null) };
    this.#end("failed");
    tell(this.#find(".problem"), this.edit.problem, make);
    if (isBug) throw error;
    if (error.status === 401) this.#key.refuse(error);
    if (error.isRefusal) this.#refuse(error, make);
  }

  /** Leave what the server will never take to the form, which still holds it. */
  #refuse(error, make) {
    this.#button("again").hidden = true;
    if (this.#done.length) return;
    this.#handlers.refused(error, make);
  }

  async #end(state) {
    this.edit.state = state;
    this.#showEnd();
    const outputs = t("count.outputs", { count: this.#outputs.length });
    announce(t("run.ended", { state: this.#ending(), done: this.#done.length, outputs }));
    await this.#kept.change(this.edit);
    // What is kept here takes no more room there. A job that is cancelled is deleted already.
    if (state !== "cancelled" && this.#kept.holds(this.edit.id)) forgetJob(this.edit, this.#key);
  }

  #showEnd() {
    this.element.dataset.state = this.edit.state;
    for (const output of this.#outputs) output.stop();
    write(this.#find(".state"), () => this.#ending());
    if (this.edit.problem) tell(this.#find(".problem"), this.edit.problem);
    hide(this.#button("cancel"), this.#heading);
    this.#button("again").hidden = this.#done.length === this.#outputs.length;
    this.#button("remove").disabled = false;
  }

  #ending() {
    if (this.edit.state === "done") return t("run.done", { seconds: this.edit.seconds.toFixed(1) });
    return this.edit.state === "cancelled" ? t("run.cancelled") : t("run.failed");
  }

  // --- buttons ---

  async #copy(button, makeCall) {
    const { files, fields, outputs } = this.edit;
    // With the edit's random seed, so that the copied call reproduces these pictures.
    const [{ seed, place } = {}] = outputs;
    const seeded = outputs.length ? { ...fields, seed: String(seed - place) } : fields;
    await copy(makeCall({ files, fields: seeded }, this.#key.needed));
    const name = () => t(button.dataset.text);
    announce(t("run.copied.what", { what: name() }));
    write(button, () => t("run.copied"));
    setTimeout(() => write(button, name), COPIED_MS);
  }

  // --- parts ---

  get #n() {
    return Number(this.edit.fields.n);
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
    return this.edit.files.filter((file) => file.field === field);
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
