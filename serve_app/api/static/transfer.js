// Files that are dropped or pasted anywhere on the page.

/** Call `take` with the files, and with the element onto which they were dropped or that had the focus. */
export function takeFiles(take) {
  const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
  const mark = (over) => document.body.classList.toggle("dragging", over);
  // The whole page accepts them, since the browser would otherwise open a picture that misses the field.
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false);
  });
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!holdsFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files, event.target);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files, event.target);
  });
}
