// Names for the user: of files, of pictures in an error, and of what an edit was asked for.

import { counted } from "./dom.js";

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

/** Return a line that says what an edit was asked for. */
export function facts({ files, fields }) {
  const { n, size, num_inference_steps: steps, guidance_scale: guidance, seed, negative_prompt: negative } = fields;
  const count = (field) => files.filter((file) => file.field === field).length;
  const said = [`${counted(count("images"), "picture")} × ${counted(Number(n), "variant")}`];
  if (count("references")) said.push(counted(count("references"), "reference"));
  if (count("mask")) said.push("with a mask");
  if (size) said.push(`size ${size}`);
  if (steps) said.push(counted(Number(steps), "step"));
  if (guidance) said.push(`guidance ${guidance}`);
  if (seed) said.push(`seed ${seed}`);
  if (negative) said.push(`without “${negative}”`);
  return said.join(" · ");
}
