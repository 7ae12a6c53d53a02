// Write zip archives. Files are stored without compression, since pictures are already compressed.

import { crc32 } from "./crc32.js";

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20;
const UTF8_NAMES = 0x0800;

/** Return one Blob of `files`, [{ name, blob }]. Without zip64, their sum must stay below 4 GiB. */
export async function zip(files) {
  const local = [];
  const central = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const encoded = new TextEncoder().encode(name);
    const entry = common(bytes, encoded);
    const header = record([[4, LOCAL], ...entry]);
    local.push(header, encoded, bytes);
    // No comment, no disk number, no attributes.
    central.push(record([[4, CENTRAL], [2, VERSION], ...entry, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), encoded);
    offset += header.length + encoded.length + bytes.length;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0);
  const count = files.length;
  const end = record([[4, END], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]]);
  return new Blob([...local, ...central, end], { type: "application/zip" });
}

function common(bytes, name) {
  const now = new Date();
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const day = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  const sizes = [[4, bytes.length], [4, bytes.length], [2, name.length], [2, 0]];
  return [[2, VERSION], [2, UTF8_NAMES], [2, 0], [2, time], [2, day], [4, crc32(bytes)], ...sizes];
}

/** Return the little-endian bytes of [[width, value]]. */
function record(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [width]) => sum + width, 0));
  let at = 0;
  for (const [width, value] of fields) {
    for (let k = 0; k < width; k++) bytes[at++] = value >>> (8 * k);
  }
  return bytes;
}
