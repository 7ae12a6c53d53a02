// The brush by keyboard: the arrow keys move it, Space paints, and brackets change its size.

import { announce } from "./dom.js";
import { t } from "./texts.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SIZES = { "[": -5, "]": 5 };
// Steps of half the brush leave no gap between two places that are painted alone.
const STEP = 0.5;
const LONG_STEP = 2;

/** Where the brush is, as shares of the canvas. */
let at = [0.5, 0.5];
let isDown = false;

/**
 * Let keys lead a brush over a canvas. `brush`: { press, draw, lift, show, resize, thickness, isPainted }; its places are
 * in the canvas's own pixels.
 */
export function prepareBrushKeys(canvas, brush) {
  const place = () => [at[0] * canvas.width, at[1] * canvas.height];
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && brush.show(...place()));
  canvas.addEventListener("blur", () => lift(brush));
  canvas.addEventListener("keyup", ({ key }) => key === " " && lift(brush));
  canvas.addEventListener("keydown", (event) => {
    const { key, shiftKey, repeat } = event;
    if (key in SIZES) announce(t("mask.thickness", { size: brush.resize(SIZES[key]) }));
    else if (key === " " && !repeat) press(brush, place());
    else if (key in ARROWS) {
      go(canvas, ARROWS[key], brush.thickness() * (shiftKey ? LONG_STEP : STEP));
      if (isDown) brush.draw([place()]);
    } else if (key !== " ") return;
    event.preventDefault();
    brush.show(...place());
    if (!(key in SIZES)) announce(said(at, brush.isPainted(...place())));
  });
}

function press(brush, place) {
  isDown = true;
  brush.press(place);
}

function lift(brush) {
  if (isDown) brush.lift();
  isDown = false;
}

function go({ width, height }, [right, down], pixels) {
  const within = (share) => Math.min(1, Math.max(0, share));
  at = [within(at[0] + (right * pixels) / width), within(at[1] + (down * pixels) / height)];
}

function said([x, y], isPainted) {
  const place = { x: Math.round(100 * x), y: Math.round(100 * y) };
  return isPainted ? t("mask.place.painted", place) : t("mask.place.kept", place);
}
