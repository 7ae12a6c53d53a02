// How long an edit still takes, by the rate of its own steps.

const WINDOW_MS = 30_000;
const LEAST_MS = 1000;

export class Pace {
  /** Progress of the last while, each as { ms, done }. */
  #seen = [];

  /** Return the seconds that are left, or null as long as nothing is known. `ms`: the time, by any clock. */
  left({ steps_done: done, steps, place }, ms) {
    const last = this.#seen.at(-1);
    // An edit that begins again has a new rate.
    if (last && done < last.done) this.#seen = [];
    if (place > 0) return null;
    // Not from the beginning, since the pictures are encoded before the first step.
    if (done > 0 && done !== last?.done) this.#seen.push({ ms, done });
    while (this.#seen.length > 3 && ms - this.#seen[0].ms > WINDOW_MS) this.#seen.shift();
    const [first] = this.#seen;
    if (this.#seen.length < 3 || ms - first.ms < LEAST_MS) return null;
    return (steps - done) * ((ms - first.ms) / 1000 / (done - first.done));
  }
}
