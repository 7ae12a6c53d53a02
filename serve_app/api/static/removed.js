// The edit that was removed last, which can be brought back until the next one is removed or started.

import { clone } from "./dom.js";
import { fill, t, write } from "./texts.js";

let last = null;

/** Put a line with "Undo" in an edit's place. `undone` is called after the edit is back. */
export function showRemoved(run, undone) {
  forgetRemoved();
  const line = clone("removed-template");
  write(line.querySelector("span"), () => t("run.removed", { prompt: run.prompt }));
  run.element.replaceWith(line);
  last = { run, line };
  const button = line.querySelector("button");
  button.addEventListener("click", () => {
    // The language may have changed while it was away.
    fill(run.element);
    line.replaceWith(run.element);
    last = null;
    undone();
    run.focus();
  });
  button.focus();
}

/** Release the memory of the removed edit. */
export function forgetRemoved() {
  if (!last) return;
  last.line.remove();
  last.run.release();
  last = null;
}
