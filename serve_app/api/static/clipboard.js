// Copy text. `execCommand` replaces the clipboard API, which browsers lack on pages over plain HTTP from other hosts.

import { t, UserError } from "./texts.js";

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused.focus();
  if (!copied) throw new UserError(() => t("run.uncopied"));
}
