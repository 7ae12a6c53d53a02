// Instructions that a demonstration model knows: a click writes one into the form.

import { element } from "./dom.js";

/** Add the listeners of the examples. Call once, when the page is loaded. */
export function prepareExamples() {
  element("examples").addEventListener("click", ({ target }) => {
    if (!target.matches("button")) return;
    element("prompt").value = target.textContent;
    element("prompt").dispatchEvent(new Event("input", { bubbles: true }));
    element("prompt").focus();
  });
}

/** Show the examples if the served model is one for demonstrations. `model`: from the server. */
export function offerExamples({ demonstration }) {
  element("examples").hidden = !demonstration;
}
