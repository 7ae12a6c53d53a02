// Helpers for the page's elements: clones of templates, and announcements for screen readers.

import { fill, write } from "./texts.js";

export function element(id) {
  return document.getElementById(id);
}

/** Return a new copy of the single element in a template. */
export function clone(id) {
  const copy = element(id).content.firstElementChild.cloneNode(true);
  fill(copy);
  return copy;
}

/** Announce a change outside of the focus to screen readers, which read it at the next pause. */
export function announce(text) {
  element("announcements").textContent = text;
}

/** Show an error's message. `make`: function that returns it, if it is not the error's own. */
export function tell(node, error, make = () => error.message) {
  write(node, make);
  // The server's own messages are English.
  if (error.code) node.lang = "en";
  else node.removeAttribute("lang");
}

/** Open a dialog, in which announcements are read: those outside of it are not while it is open. */
export function openModal(dialog) {
  announce("");
  dialog.append(element("announcements"));
  dialog.addEventListener("close", () => document.body.append(element("announcements")), { once: true });
  dialog.showModal();
}

/** Show a picture, or the name of its format if the browser cannot read it (in most browsers, TIFF). */
export function show(parent, file, url) {
  const picture = parent.querySelector("img");
  picture.addEventListener("error", () => {
    const type = parent.querySelector(".type");
    type.textContent = file.name.split(".").at(-1).toUpperCase();
    type.hidden = false;
    picture.hidden = true;
  });
  picture.src = url;
}

/** Hide a button. If it has the focus, move the focus to `next`, so that the focus is not lost. */
export function hide(button, next) {
  const focused = document.activeElement === button;
  button.hidden = true;
  if (focused) next.focus();
}
