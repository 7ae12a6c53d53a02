// Pieces of the page: clones of its templates, and texts that only screen readers hear.

export function element(id) {
  return document.getElementById(id);
}

/** A new copy of the one element in a template. */
export function clone(id) {
  return element(id).content.firstElementChild.cloneNode(true);
}

/** Said politely by screen readers: what happens away from where the focus is. */
export function announce(text) {
  element("announcements").textContent = text;
}

/** Show a picture, or where the browser cannot read its format (TIFF in most), the format's name. */
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

/** Hide a button. Where it had the focus, which would be lost to nowhere, `heir` gets it. */
export function hide(button, heir) {
  const focused = document.activeElement === button;
  button.hidden = true;
  if (focused) heir.focus();
}

export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
