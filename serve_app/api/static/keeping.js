// What users see of what their browser keeps: how much, what it cannot keep, and how to forget it.

import { element } from "./dom.js";
import { t, write } from "./texts.js";

/** Show how many edits there are, and warn before the page is left with something that is lost. Call once. */
export function prepareKeeping(runs, kept, pictures) {
  const show = () => {
    element("keeping").hidden = kept.works && !runs.count;
    element("keeping").querySelector("button").hidden = !runs.count;
    write(element("keeping").querySelector(".hint"), () => saying(runs, kept));
  };
  element("results").addEventListener("change", show);
  kept.addEventListener("lost", show);
  show();
  addEventListener("beforeunload", (event) => {
    if (runs.mayLose || (!kept.works && pictures.count)) event.preventDefault();
  });
  prepareForgetting(runs);
}

function saying({ count }, kept) {
  if (!kept.works) return t("kept.none");
  return kept.lost.size ? t("kept.full", { count: kept.lost.size }) : t("kept.count", { count });
}

function prepareForgetting(runs) {
  const dialog = element("forget");
  element("keeping").querySelector("button").addEventListener("click", () => dialog.showModal());
  dialog.querySelector("[data-do=cancel]").addEventListener("click", () => dialog.close());
  dialog.querySelector("[data-do=forget]").addEventListener("click", async () => {
    dialog.close();
    await runs.forget();
    element("results").focus();
  });
}
