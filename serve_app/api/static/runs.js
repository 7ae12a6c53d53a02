// The edits on the page, the latest first: those of this tab, of earlier visits, and of other tabs.

import { announce, element } from "./dom.js";
import { showRefusal } from "./form.js";
import { newId } from "./names.js";
import { forgetRemoved, showRemoved } from "./removed.js";
import { Run } from "./run.js";
import { t } from "./texts.js";

export class Runs {
  /** By the id of the edit. */
  #shown = new Map();
  #key;
  #kept;
  #forms;

  /** `forms`: { goOn, refill, sameSeed, newSeed }: functions that fill the form from an edit. */
  constructor(key, kept, forms) {
    this.#key = key;
    this.#kept = kept;
    this.#forms = forms;
    kept.listen((id) => this.#hear(id));
  }

  /** Show what is kept, and follow what runs. */
  async restore() {
    const kept = await this.#kept.edits();
    // An edit that was started meanwhile is among them too.
    for (const edit of kept.filter(({ id }) => !this.#shown.has(id))) this.#show(edit).follow();
  }

  /** Start an edit. `call`: { fields, files } from the form. */
  start(call) {
    forgetRemoved();
    const begun = { job: null, state: "running", problem: null, seconds: 0, outputs: [] };
    const edit = { id: newId(), at: Date.now(), ...call, ...begun };
    this.#kept.add(edit);
    const run = this.#show(edit);
    bringIntoSight(run.element);
    run.follow();
  }

  /** How many are shown. */
  get count() {
    return this.#shown.size;
  }

  /** Whether something is lost when the page is closed. */
  get mayLose() {
    return [...this.#shown.values()].some(({ edit, isWorth }) => isWorth && !this.#kept.holds(edit.id));
  }

  /** Cancel and forget everything. */
  async forget() {
    forgetRemoved();
    for (const id of [...this.#shown.keys()]) this.#drop(id);
    await this.#kept.clear();
  }

  #show(edit) {
    const { goOn, refill, sameSeed, newSeed } = this.#forms;
    const { id, fields, files } = edit;
    const run = new Run(edit, this.#key, this.#kept, {
      again: () => {
        if (!run.isWorth) this.#forget(id);
        this.start({ fields, files });
        latest().focus();
      },
      refused: (error, make) => {
        this.#forget(id);
        showRefusal(error, error.param, make);
      },
      removed: () => this.#remove(run),
      refill: () => refill(edit),
      goOn,
      sameSeed,
      newSeed,
    });
    const older = [...element("results").querySelectorAll(".run")].find(({ dataset }) => Number(dataset.at) < edit.at);
    if (older) older.before(run.element);
    else element("results").append(run.element);
    this.#shown.set(id, run);
    this.#showCount();
    return run;
  }

  /** Remove an edit, which can be undone. */
  #remove(run) {
    const { id } = run.edit;
    showRemoved(run, () => {
      this.#shown.set(id, run);
      this.#kept.add(run.edit);
      this.#showCount();
    });
    this.#shown.delete(id);
    this.#kept.remove(id);
    this.#showCount();
  }

  #forget(id) {
    this.#drop(id);
    this.#kept.remove(id);
  }

  #drop(id) {
    const run = this.#shown.get(id);
    run.cancel();
    run.element.remove();
    run.release();
    this.#shown.delete(id);
    this.#showCount();
  }

  /** Take over what another tab has done to an edit, or, for null, to all. */
  async #hear(id) {
    const gone = id === null ? [...this.#shown.keys()] : [id];
    const edit = id === null ? null : await this.#kept.edit(id);
    if (!edit) {
      for (const each of gone) if (this.#shown.has(each)) this.#drop(each);
      // As long as it has no job, the other tab sends it.
    } else if (!this.#shown.has(id) && (edit.job || edit.state !== "running")) this.#show(edit).follow();
  }

  #showCount() {
    element("empty").hidden = this.count > 0;
    element("results").dispatchEvent(new Event("change"));
  }
}

/** Announce that the next edit has a seed, or draws one. */
export function announceSeed(seed) {
  announce(seed === "" ? t("form.seed.drawn") : t("form.seed.taken", { seed }));
}

/** Scroll to an edit if its beginning is out of sight, as on narrow screens. */
function bringIntoSight(run) {
  const { top } = run.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) run.scrollIntoView();
}

function latest() {
  return element("results").querySelector(".run h2");
}
