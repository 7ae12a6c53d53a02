// Pictures of a list that are put into another order: dragged, by their handle or by mouse, or moved by the arrow keys.

const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };

/** Let users move an item of a list. `move`: called with by how many places, which may be more than there are. */
export function makeMovable(item, move) {
  const handle = item.querySelector("[data-do=move]");
  // By touch only the handle drags, since the page scrolls under the finger on a picture.
  const drags = ({ target, pointerType }) => handle.contains(target) || (pointerType === "mouse" && target.matches("img"));
  item.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button !== 0 || !drags(event)) return;
    item.setPointerCapture(event.pointerId);
    item.classList.add("moving");
  });
  item.addEventListener("pointermove", ({ clientX, clientY }) => {
    if (!item.classList.contains("moving")) return;
    const items = [...item.parentElement.children];
    const under = items.findIndex((other) => other.contains(document.elementFromPoint(clientX, clientY)));
    if (under >= 0) move(under - items.indexOf(item));
  });
  item.addEventListener("lostpointercapture", () => item.classList.remove("moving"));
  // The browser's own dragging would end that of the pointer.
  item.addEventListener("dragstart", (event) => event.preventDefault());
  handle.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    move(STEPS[event.key]);
  });
}

/** Move an item of a list by so many places, and return that number: less than `by` at the end of the list. */
export function moveItem(item, by) {
  let moved = 0;
  // The others move around it, since an item that leaves the page loses the focus and the pointer.
  for (; moved < by && item.nextElementSibling; moved++) item.before(item.nextElementSibling);
  for (; moved > by && item.previousElementSibling; moved--) item.after(item.previousElementSibling);
  return moved;
}
