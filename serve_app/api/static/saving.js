// Save files to the user's disk.

import { zip } from "./zip.js";

const SAVED_MS = 60_000;

/** Save files, [{ name, blob }]: one as it is, several as an archive with the name `archive`. */
export async function save(files, archive) {
  const [{ name, blob }] = files.length === 1 ? files : [{ name: archive, blob: await zip(files) }];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // Not at once, since browsers start to save the file later.
  setTimeout(() => URL.revokeObjectURL(link.href), SAVED_MS);
}
