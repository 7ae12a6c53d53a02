// Long texts, of which only the first lines are shown, and a button for all of them.

import { fill, t, write } from "./texts.js";

/** Let a button show and fold texts: elements whose style cuts them while the button's `aria-expanded` is false. */
export function foldTexts(texts, button) {
  const isCut = () => texts.some(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight);
  const isOpen = () => button.getAttribute("aria-expanded") === "true";
  const observer = new ResizeObserver(() => (button.hidden = !isOpen() && !isCut()));
  for (const text of texts) observer.observe(text);
  write(button, () => (isOpen() ? t("run.fold") : t("run.unfold")));
  button.addEventListener("click", () => {
    button.setAttribute("aria-expanded", String(!isOpen()));
    fill(button);
  });
}
