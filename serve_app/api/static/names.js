// Names for the user: of files, of pictures in an error, and of what an edit was asked for.

import { t } from "./texts.js";

/** Return an id of 128 random bits. `randomUUID` is missing from pages over plain HTTP. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Return the file names without extensions. Files with the same name get their number as a suffix. */
export function uniqueStems(names) {
  const stems = names.map((name) => name.replace(/\.[^.]*$/, "") || name);
  return stems.map((stem, i) => (stems.filter((other) => other === stem).length > 1 ? `${stem}_${i + 1}` : stem));
}

/** Return an error's message with the names of files in place of their index. `files`: as in a call. */
export function withFileNames({ message, param }, files) {
  const field = param === "references" ? "references" : "images";
  const names = files.filter((file) => file.field === field).map(({ name }) => name);
  return message.replace(/ at index (\d+)/g, (text, index) => (index in names ? ` (${names[index]})` : text));
}

/** Return the instruction of an edit, or a line for each picture that has its own. */
export function instruction({ files, fields: { prompt } }) {
  if (!Array.isArray(prompt)) return prompt;
  const pictures = files.filter(({ field }) => field === "images");
  return prompt.map((text, i) => `${pictures[i].name}: ${text}`).join("\n");
}

/** Return a line that says what an edit was asked for. */
export function facts({ files, fields }) {
  const { n, size, num_inference_steps: steps, guidance_scale: guidance, seed, negative_prompt: negative } = fields;
  const count = (field) => files.filter((file) => file.field === field).length;
  const pictures = t("count.pictures", { count: count("images") });
  const variants = t("count.variants", { count: Number(n) });
  const said = [count("images") ? t("run.scale", { pictures, variants }) : variants];
  if (count("references")) said.push(t("count.references", { count: count("references") }));
  if (count("mask")) said.push(t("run.mask"));
  if (size) said.push(t("run.size", { size }));
  if (steps) said.push(t("count.steps", { count: Number(steps) }));
  if (guidance) said.push(t("run.guidance", { guidance }));
  if (seed) said.push(t("run.seed", { seed }));
  if (negative) said.push(t("run.negative", { words: negative }));
  return said.join(" · ");
}
