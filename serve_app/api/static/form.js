// The form's fields by their API names, what the page refuses itself, and where it shows what the server refused.

import { element, tell } from "./dom.js";
import { check as checkPrompts } from "./prompts.js";
import { checkSize, chosenSize, offer, offerSizes } from "./sizes.js";
import { t, write } from "./texts.js";

const FREE_SIZE = /^(\d+)x(\d+)$/;

/** Add the listeners that check fields while users fill them in. `limits`: the server's. */
export function prepareForm(form, limits) {
  const check = () => {
    write(element("form-problem"), () => "");
    for (const field of form.querySelectorAll("[aria-invalid=true]:not(#key)")) field.removeAttribute("aria-invalid");
    checkPrompts();
    checkSize(limits);
    checkFormat();
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
export function offerChoices({ presets, adapters, native_area, transparency, license }, limits) {
  offerSizes(native_area, limits);
  offerTransparency(transparency);
  element("license").hidden = !license;
  write(element("license"), () => t("page.license", { license }));
  const preset = element("preset");
  offer(preset, presets.map((name) => new Option(name)));
  // What was filled in before the server had named its presets.
  if (presets.includes(preset.dataset.wanted)) {
    preset.value = preset.dataset.wanted;
    delete preset.dataset.wanted;
  }
  preset.parentElement.hidden = !presets.length;
  element("adapters").placeholder = adapters.join(", ");
  element("adapters").parentElement.hidden = !adapters.length;
}

/** Name the button for what it starts. `isEdit`: whether there are pictures to edit. */
export function nameSubmit(isEdit) {
  write(element("submit"), () => (isEdit ? t("form.submit") : t("form.create")));
}

/** Let a quality be chosen for the formats that have one. */
function checkFormat() {
  const quality = element("output_compression");
  quality.disabled = !element("output_format").value;
  quality.parentElement.hidden = quality.disabled;
}

function offerTransparency(isOffered) {
  const background = element("background");
  const option = new Option("", "transparent");
  write(option, () => t("form.background.transparent"));
  offer(background, isOffered ? [option] : []);
  if (isOffered && background.dataset.wanted === "transparent") {
    background.value = "transparent";
    delete background.dataset.wanted;
  }
}

/** Return the form's fields by their API names, without empty fields, for which the server has defaults. */
export function filledFields(form) {
  const filled = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== "");
  const fields = Object.fromEntries(filled);
  if (fields.size) fields.size = chosenSize();
  return fields;
}

/** Fill the form's fields by their API names, and empty the others. The instruction is not among them. */
export function fillFields(form, fields) {
  const isOffered = [...element("size").options].some(({ value }) => value === fields.size);
  const sides = isOffered ? null : FREE_SIZE.exec(fields.size);
  const filled = { ...fields, n: fields.n ?? 1, size: sides ? "free" : fields.size };
  const others = [...form.querySelectorAll("[name]")].filter(({ id }) => id !== "prompt");
  for (const field of others) field.value = filled[field.name] ?? "";
  element("preset").dataset.wanted = fields.preset ?? "";
  element("background").dataset.wanted = fields.background ?? "";
  element("width").value = sides?.[1] ?? "";
  element("height").value = sides?.[2] ?? "";
  if (others.some(({ name }) => filled[name] && element("more").contains(form.elements[name]))) element("more").open = true;
  form.dispatchEvent(new Event("input"));
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
