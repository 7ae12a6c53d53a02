// The form's fields by their API names, what the page refuses itself, and where it shows what the server refused.

import { element, tell } from "./dom.js";
import { check as checkPrompts } from "./prompts.js";
import { checkSize, chosenSize, offer, offerSizes } from "./sizes.js";
import { write } from "./texts.js";

/** Add the listeners that check fields while users fill them in. `limits`: the server's. */
export function prepareForm(form, limits) {
  const check = () => {
    write(element("form-problem"), () => "");
    for (const field of form.querySelectorAll("[aria-invalid=true]:not(#key)")) field.removeAttribute("aria-invalid");
    checkPrompts();
    checkSize(limits);
  };
  form.addEventListener("input", check);
  // A field inside a closed <details> cannot show its validation message.
  element("more").addEventListener("invalid", () => (element("more").open = true), true);
  form.addEventListener("keydown", (event) => {
    const isText = event.target.matches("textarea");
    if (isText && event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  check();
}

/** Show the fields for what the model offers. `model`, `limits`: from the server. */
export function offerChoices({ presets, adapters, native_area }, limits) {
  offerSizes(native_area, limits);
  const preset = element("preset");
  offer(preset, presets.map((name) => new Option(name)));
  preset.parentElement.hidden = !presets.length;
  element("adapters").placeholder = adapters.join(", ");
  element("adapters").parentElement.hidden = !adapters.length;
}

/** Return the form's fields by their API names, without empty fields, for which the server has defaults. */
export function filledFields(form) {
  const filled = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== "");
  const fields = Object.fromEntries(filled);
  if (fields.size) fields.size = chosenSize();
  return fields;
}

/**
 * Show at the form what is wrong with what it holds. `param`: the field; `make`: function that returns the message, if it
 * is not the error's own.
 */
export function showRefusal(error, param, make) {
  tell(element("form-problem"), error, make);
  const field = fieldOf(param);
  field?.setAttribute("aria-invalid", "true");
  (field ?? element("prompt")).focus();
}

function fieldOf(param) {
  if (param === "images" || param === "mask") return element("files");
  if (param === "size" && !element("free-size").hidden) return element("width");
  return element("form").elements[param];
}
