// What the browser keeps for this site. One that keeps nothing raises an error even if it is only asked.

/** Return what is kept under a name, or null. `kind`: "localStorage" or "sessionStorage". */
export function recall(kind, name) {
  try {
    return window[kind].getItem(name);
  } catch {
    return null;
  }
}

/** Keep a text under a name, where the browser lets us. */
export function keep(kind, name, text) {
  try {
    window[kind].setItem(name, text);
  } catch {
    // The page works without: users choose again, or enter again, when they come back.
  }
}
