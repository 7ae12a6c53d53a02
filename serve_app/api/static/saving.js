// Save files to the user's disk, or hand them to another app.

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

/** Whether the system can hand a file to another app: on most phones, and only over HTTPS or on this machine. */
export function canShare(file) {
  return navigator.canShare?.({ files: [file] }) ?? false;
}

/** Let users choose the app that gets a file. If the system then refuses it, save it. */
export async function share(file) {
  try {
    await navigator.share({ files: [file] });
  } catch (error) {
    // Users who changed their mind want no file.
    if (error.name !== "AbortError") await save([{ name: file.name, blob: file }]);
  }
}
