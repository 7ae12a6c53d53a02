// Files that are dropped or pasted anywhere on the page, and addresses, of which the server loads none.

const ADDRESS = /^\s*https?:\/\/\S+\s*$/;

/**
 * Call `take` with the files, and with the element onto which they were dropped or that had the focus; call `refuse` with
 * that element if there is an address in their place.
 */
export function takeFiles(take, refuse) {
  const isText = (target) => target.matches("textarea, input:not([type=file], [type=range])");
  const holdsFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  // To leave it to the browser would replace the page by what is at the address.
  const holdsAddress = ({ dataTransfer, target }) => dataTransfer.types.includes("text/uri-list") && !isText(target);
  const mark = (over) => document.body.classList.toggle("dragging", over);
  // The whole page accepts them, since the browser would otherwise open a picture that misses the field.
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event) && !holdsAddress(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false);
  });
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!holdsFiles(event) && !holdsAddress(event)) return;
    event.preventDefault();
    if (holdsFiles(event)) take(event.dataTransfer.files, event.target);
    else refuse(event.target);
  });
  document.addEventListener("paste", (event) => {
    const { files } = event.clipboardData;
    if (files.length) {
      event.preventDefault();
      take(files, event.target);
    } else if (ADDRESS.test(event.clipboardData.getData("text")) && !isText(event.target)) refuse(event.target);
  });
}
