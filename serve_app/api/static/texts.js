// The page's texts in the language of its reader, who can change it at any time.

import { keep, recall } from "./storage.js";
import en from "./texts/en.js";
import zh from "./texts/zh.js";

/** By code; the first is for readers of none of them. */
const LANGUAGES = { en, zh };
const STORED = "image-edits-language";
/** Attributes whose texts index.html names, as in `data-text-placeholder="form.seed.random"`. */
const ATTRIBUTES = ["aria-label", "placeholder"];

/** Functions that return what an element says, by what of it says that; see `write`. */
const written = new WeakMap();
let language = null;
let plurals = null;

/** Fill the page with its texts, and the list of languages with its choices. Call before anything else is done. */
export function prepareTexts(list) {
  for (const [code, { name, tag }] of Object.entries(LANGUAGES)) {
    const option = new Option(name, code);
    option.lang = tag;
    list.append(option);
  }
  list.value = recall("localStorage", STORED) ?? languageOfBrowser();
  // Of a language that the page had in a former version.
  if (!list.value) list.value = languageOfBrowser();
  list.addEventListener("change", () => {
    keep("localStorage", STORED, list.value);
    speak(list.value);
  });
  speak(list.value);
}

/**
 * Return a text in the reader's language. `values`: what its {placeholders} stand for; `count` decides, too, between
 * singular and plural.
 */
export function t(key, values = {}) {
  const text = LANGUAGES[language].texts[key];
  const form = typeof text === "string" ? text : text[plurals.select(values.count)];
  return form.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/**
 * Write a text into an element, now and after each change of the language. `make`: function that returns it; `target`:
 * "content", "validity" (why its value cannot be sent), or the name of an attribute.
 */
export function write(node, make, target = "content") {
  if (!written.has(node)) written.set(node, new Map());
  written.get(node).set(target, make);
  put(node, target, make());
}

/** Write the texts of an element and of all within it again: it was made from a template, or was not on the page. */
export function fill(root) {
  for (const node of [root, ...root.querySelectorAll("*")]) {
    if (node.dataset.text) put(node, "content", t(node.dataset.text));
    for (const name of ATTRIBUTES) {
      const key = node.getAttribute(`data-text-${name}`);
      if (key) put(node, name, t(key));
    }
    for (const [target, make] of written.get(node) ?? []) put(node, target, make());
  }
}

/** An error whose message is a text for the user. `make`: function that returns it. */
export class UserError extends Error {
  #make;

  constructor(make) {
    super();
    this.#make = make;
  }

  get message() {
    return this.#make();
  }
}

function speak(code) {
  language = code;
  plurals = new Intl.PluralRules(code);
  document.documentElement.lang = LANGUAGES[code].tag;
  fill(document.documentElement);
}

function languageOfBrowser() {
  // Of "zh-Hant-TW" the first part alone: readers of another script or region know ours best among the page's languages.
  const wanted = navigator.languages.map((tag) => tag.split("-")[0].toLowerCase());
  return wanted.find((code) => code in LANGUAGES) ?? Object.keys(LANGUAGES)[0];
}

function put(node, target, text) {
  if (target === "content") node.textContent = text;
  else if (target === "validity") node.setCustomValidity(text);
  else node.setAttribute(target, text);
}
