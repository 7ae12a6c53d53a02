// The size of outputs: as the picture, one of a few shapes at the model's native area, or free.

import { element } from "./dom.js";
import { t, write } from "./texts.js";

/** Each shape's width ÷ height, and its name. */
const SHAPES = [
  [1, (size) => t("form.size.square", { size })],
  [4 / 3, (size) => t("form.size.landscape", { size })],
  [3 / 4, (size) => t("form.size.portrait", { size })],
  [16 / 9, (size) => t("form.size.wide", { size })],
  [9 / 16, (size) => t("form.size.tall", { size })],
];
// A size of whole multiples is made as it is; another one would be resized.
const MULTIPLE = 16;

let mostPixels = Infinity;

/** Offer the shapes of a model. `nativeArea`: in pixels, null if it is not known yet; `limits`: the server's. */
export function offerSizes(nativeArea, { max_area_factor }) {
  mostPixels = nativeArea === null ? Infinity : Math.round(max_area_factor * nativeArea);
  const shapes = nativeArea === null ? [] : SHAPES.map((shape) => option(shape, nativeArea));
  offer(element("size"), shapes);
}

/** Put options into a select after those that it always has; what was selected stays so, if it is still there. */
export function offer(select, options) {
  const { value } = select;
  for (const former of select.querySelectorAll("[data-offered]")) former.remove();
  for (const each of options) each.toggleAttribute("data-offered", true);
  select.append(...options);
  if (options.some((each) => each.value === value)) select.value = value;
}

function option([aspect, name], area) {
  const sides = [Math.sqrt(area * aspect), Math.sqrt(area / aspect)];
  const [width, height] = sides.map((side) => Math.max(1, Math.round(side / MULTIPLE)) * MULTIPLE);
  const made = new Option("", `${width}x${height}`);
  write(made, () => name(`${width} × ${height}`));
  return made;
}

/** Return the API's value of the size, "" for the server's default. */
export function chosenSize() {
  const { value } = element("size");
  return value === "free" ? `${element("width").value}x${element("height").value}` : value;
}

/** Show the fields that belong to the chosen size, and refuse what the server would refuse. */
export function checkSize({ max_aspect_ratio: most }) {
  const { value } = element("size");
  const isFree = value === "free";
  element("free-size").hidden = !isFree;
  element("size-hint").hidden = ["", "original"].includes(value);
  const sides = [element("width"), element("height")];
  for (const side of sides) side.disabled = !isFree;
  const [width, height] = sides.map((side) => Number(side.value));
  const isTooLong = isFree && width && height && Math.max(width / height, height / width) > most;
  const isTooLarge = isFree && width * height > mostPixels;
  const problem = () => {
    if (isTooLong) return t("form.size.aspect", { most });
    return isTooLarge ? t("form.size.large", { most: mostPixels.toLocaleString() }) : "";
  };
  write(sides[1], problem, "validity");
}
