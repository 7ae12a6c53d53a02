// The line of a running edit: a bar, and in words how far it is.

import { announce } from "./dom.js";
import { Pace } from "./pace.js";
import { t, write } from "./texts.js";

const LONG_S = 90;

export class Progress {
  #element;
  #at;
  #pace = new Pace();
  /** The key of what is said. */
  #said = "";

  /** `element`: has a <progress> and a .state. `at`: when the edit was started, in ms since the epoch. */
  constructor(element, at) {
    this.#element = element;
    this.#at = at;
  }

  /** Show an event: image_edit.progress. */
  show(event) {
    const { steps_done: done, steps, place } = event;
    const bar = this.#element.querySelector("progress");
    const left = this.#pace.left(event, performance.now());
    if (place > 0) {
      const key = place === 1 ? "run.next" : "run.place";
      bar.removeAttribute("value");
      this.say(key, () => t(key, { place }));
      return;
    }
    bar.max = steps;
    bar.value = done;
    const seconds = ((Date.now() - this.#at) / 1000).toFixed(1);
    this.say("run.step", () => [t("run.step", { done, steps, seconds }), timeLeft(left)].filter(Boolean).join(" · "));
  }

  /** Say how far it is. `key`: of the text; `make`: function that returns it. */
  say(key, make = () => t(key)) {
    write(this.#element.querySelector(".state"), make);
    // Announce the queue and the start of the steps to screen readers, but not every step.
    if (key !== this.#said) announce(make());
    this.#said = key;
  }
}

function timeLeft(seconds) {
  if (seconds === null) return "";
  const isShort = seconds < LONG_S;
  return t(isShort ? "run.left" : "run.left.minutes", { count: Math.ceil(isShort ? seconds : seconds / 60) });
}
