// Write PNG files of black and white pixels. A canvas would write colours, and browsers bound its size.

import { crc32 } from "./crc32.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Return a PNG as a Blob. `row`: function that fills an array with the bits of row y, the leftmost pixel the highest. */
export async function bitPng(width, height, row) {
  const stride = Math.ceil(width / 8) + 1;
  const pixels = new Uint8Array(height * stride);
  // The first byte of each row names its filter: 0 is none.
  for (let y = 0; y < height; y++) row(y, pixels.subarray(y * stride + 1, (y + 1) * stride));
  const packed = new Blob([pixels]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  // Its size, one bit for a pixel, grey, and the only methods that there are.
  const header = [...bigEndian(width), ...bigEndian(height), 1, 0, 0, 0, 0];
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", [])];
  return new Blob(parts, { type: "image/png" });
}

function chunk(kind, data) {
  const bytes = new Uint8Array(data.length + 12);
  bytes.set(bigEndian(data.length));
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(data, 8);
  bytes.set(bigEndian(crc32(bytes.subarray(4, -4))), data.length + 8);
  return bytes;
}

function bigEndian(number) {
  return [number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];
}
