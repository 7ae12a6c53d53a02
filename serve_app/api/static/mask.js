// A mask: which pixels of a picture an edit may change, as the list of operations that painted it.

import { bitPng } from "./png.js";
import { t, UserError } from "./texts.js";

const MAX_PIXELS = 2 ** 21;
const OPAQUE = 255;
const THRESHOLD = 128;
const COLOUR = [224, 0, 122];
const GREY = [0.299, 0.587, 0.114];

/** Return a canvas of a picture's shape on which its mask is painted: opaque where the edit may change the picture. */
export function blankMask({ width, height }) {
  // A photo of 50 megapixels would need 200 MB, and its mask needs no such detail.
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  return canvas;
}

/** Paint operations onto a canvas, which is cleared before. */
export function paint(canvas, operations) {
  apply(canvas, { kind: "clear" });
  for (const operation of operations) apply(canvas, operation);
}

/** Paint one operation: its `kind` is one of those below. */
export function apply(canvas, operation) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = pen.strokeStyle = `rgb(${COLOUR})`;
  pen.globalCompositeOperation = "source-over";
  KINDS[operation.kind](pen, operation);
}

const KINDS = {
  stroke(pen, { erases, thickness, points: [first, ...rest] }) {
    if (erases) pen.globalCompositeOperation = "destination-out";
    pen.lineWidth = thickness;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...first);
    // A line without length, as of a tap, would not be drawn.
    pen.lineTo(first[0] + 0.01, first[1]);
    for (const point of rest) pen.lineTo(...point);
    pen.stroke();
  },
  invert(pen) {
    pen.globalCompositeOperation = "xor";
    pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  },
  clear(pen) {
    pen.clearRect(0, 0, pen.canvas.width, pen.canvas.height);
  },
  load(pen, { canvas }) {
    pen.globalCompositeOperation = "copy";
    pen.drawImage(canvas, 0, 0);
  },
};

/** Return a mask file as an operation. Raises a UserError if it cannot be read or has another size. */
export async function load(file, size) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  const { name } = file;
  if (!bitmap) throw new UserError(() => t("mask.torn", { name }));
  if (bitmap.width !== size.width || bitmap.height !== size.height) {
    const [own, wanted] = [bitmap, size].map(({ width, height }) => `${width} × ${height}`);
    throw new UserError(() => t("mask.size", { name, size: own, wanted }));
  }
  const canvas = blankMask(size);
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const image = pen.getImageData(0, 0, canvas.width, canvas.height);
  mark(image.data);
  pen.putImageData(image, 0, 0);
  return { kind: "load", canvas, file };
}

/** Turn pixels (RGBA) to the mask's colour where they say "edit", as the server reads them, and elsewhere to nothing. */
function mark(data) {
  let isTransparent = false;
  for (let at = 3; at < data.length && !isTransparent; at += 4) isTransparent = data[at] < OPAQUE;
  for (let at = 0; at < data.length; at += 4) {
    const grey = GREY[0] * data[at] + GREY[1] * data[at + 1] + GREY[2] * data[at + 2];
    const isEdited = isTransparent ? data[at + 3] < THRESHOLD : grey >= THRESHOLD;
    [data[at], data[at + 1], data[at + 2]] = COLOUR;
    data[at + 3] = isEdited ? OPAQUE : 0;
  }
}

/** Return the mask as a file of the picture's size, white where it is edited, or null if that is nowhere. */
export async function maskFile(operations, size) {
  const canvas = blankMask(size);
  paint(canvas, operations);
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  if (!data.some((value, at) => at % 4 === 3 && value >= THRESHOLD)) return null;
  const last = operations.at(-1);
  // As it was loaded, since the canvas may have less detail.
  if (last.kind === "load") return last.file;
  return bitPng(size.width, size.height, (y, bits) => {
    const line = Math.floor((y * height) / size.height) * width;
    for (let x = 0; x < size.width; x++) {
      const at = line + Math.floor((x * width) / size.width);
      if (data[4 * at + 3] >= THRESHOLD) bits[x >> 3] |= 128 >> (x & 7);
    }
  });
}

/** Return a mask of a size that lets the whole picture change. */
export function fullMask({ width, height }) {
  return bitPng(width, height, (_, bits) => bits.fill(OPAQUE));
}
