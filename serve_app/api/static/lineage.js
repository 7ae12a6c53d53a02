// The pictures from which an input was made, as a strip: each can be gone on from.

import { clone } from "./dom.js";
import { t, write } from "./texts.js";

/** Fill a strip. `before`: the files, the oldest first; `goOn`: called with a file and those before it. Return its URLs. */
export function showLineage(strip, before, goOn) {
  strip.hidden = !before.length;
  return before.map((file, i) => {
    const step = clone("step-template");
    const url = URL.createObjectURL(file);
    step.querySelector("img").src = url;
    write(step.querySelector("button"), () => t("lineage.edit", { name: file.name }), "aria-label");
    step.querySelector("button").title = file.name;
    step.querySelector("button").addEventListener("click", () => goOn(file, before.slice(0, i)));
    strip.append(step);
    return url;
  });
}
