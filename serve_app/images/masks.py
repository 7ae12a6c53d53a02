"""Masks: which pixels of a picture an edit may change, and results that keep the others."""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from serve_app.images.geometry import WHOLE, Box, Size
from serve_app.images.pixels import from_pil, without_idle_alpha

MASK_THRESHOLD = 128
"""The grey from which on a pixel of a mask means: edit. Compression puts shades between black and white."""

# Pixels over which a result fades into the input, as a part of the short side, and at most.
_FADE_SHARE, _MOST_FADE = 1 / 256, 8

_RGBA = 4
_OPAQUE = 255


def mask_from_pil(image: PIL.Image.Image) -> NDArray[np.bool_]:
    """Convert a PIL picture to a mask, height × width. Raises what `from_pil` raises."""
    return as_changes(from_pil(image, keep_alpha=True))


def as_changes(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask that a picture (RGB or RGBA) draws, height × width.

    As in OpenAI's API, transparent pixels are edited. A picture without any is read as grey, of which white is edited.
    """
    if picture.shape[2] == _RGBA:
        return picture[:, :, 3] < MASK_THRESHOLD
    return np.asarray(PIL.Image.fromarray(picture).convert("L")) >= MASK_THRESHOLD


def resize_mask(mask: NDArray[np.bool_], size: Size, crop: Box = WHOLE) -> NDArray[np.bool_]:
    """Resize the part `crop` of a mask to exactly `size`: a pixel may change if any may that it is made of."""
    height, width = mask.shape
    if crop == WHOLE and (height, width) == (size.height, size.width):
        return mask
    left, top, right, bottom = crop
    # Not Pillow's: it would round a single pixel among many away, or one whose centre lies between two others.
    rows, last_row = _parts(top * height, bottom * height, size.height)
    columns, last_column = _parts(left * width, right * width, size.width)
    bands = np.logical_or.reduceat(mask[: last_row + 1], rows)
    return np.logical_or.reduceat(bands[:, : last_column + 1], columns, axis=1)


def _parts(start: float, end: float, count: int) -> tuple[NDArray[np.intp], int]:
    """Cut pixels from `start` to `end` into equal parts: return the first pixel of each, and the last one of the last.

    A pixel is in the part that has its centre; a part without any has the pixel that is nearest.
    """
    edges = np.linspace(start, end, count + 1)
    firsts, nearest = np.ceil(edges - 0.5).astype(np.intp), ((edges[:-1] + edges[1:]) / 2).astype(np.intp)
    return np.minimum(firsts[:-1], nearest), max(int(firsts[-1]) - 1, int(nearest[-1]))


def finish(
    made: NDArray[np.uint8], kept: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return a result: what the model `made` (RGB), with the transparency of the picture that it edited.

    `kept`: that picture (RGB or RGBA), whose bytes the result has outside the mask. Inside, it is opaque, and fades
    into the picture at the mask's edge. Without a mask all is the model's, and as transparent as the picture. All are
    of one height and width. Laid on white, a result is what the model made of the picture on white.
    """
    if mask is None:
        return made if kept.shape[2] < _RGBA else _lift_off_white(made, kept[:, :, 3])
    weights, most = _weights(mask)
    result = kept.copy()
    inside = weights == most
    np.copyto(result[:, :, :3], made, where=inside[:, :, None])
    np.copyto(result[:, :, 3:], _OPAQUE, where=inside[:, :, None])
    fading = (weights > 0) & ~inside
    result[fading] = _mix(kept[fading], made[fading], weights[fading] / np.float32(most))
    return without_idle_alpha(result)


def _weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], int]:
    """Return how much of each pixel is the model's: 0 outside, from the edge inwards rising to the second value.

    The picture's own border is no edge. A mask narrower than the fading fades over its own width.
    """
    fade = max(1, min(_MOST_FADE, round(min(mask.shape) * _FADE_SHARE)))
    weights, most, inner = mask.astype(np.uint8), 1, mask
    while most < fade and (inner := _shrink(inner)).any():
        weights += inner
        most += 1
    return weights, most


def _shrink(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask whose eight neighbours are in it, too."""
    tall = mask.copy()
    tall[1:] &= mask[:-1]
    tall[:-1] &= mask[1:]
    both = tall.copy()
    both[:, 1:] &= tall[:, :-1]
    both[:, :-1] &= tall[:, 1:]
    return both


def _mix(kept: NDArray[np.uint8], made: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return pixels (each × 3 or 4) between those of a picture and those that the model made (each × 3)."""
    share = weights[:, None]
    if kept.shape[1] < _RGBA:
        return np.rint(kept + (made - kept.astype(np.float32)) * share).astype(np.uint8)
    alpha = kept[:, 3:].astype(np.float32)
    on_white = _OPAQUE - (_OPAQUE - kept[:, :3].astype(np.float32)) * alpha / _OPAQUE
    colours = np.rint(on_white + (made - on_white) * share).astype(np.uint8)
    return _lift_off_white(colours, np.rint(alpha + (_OPAQUE - alpha) * share).astype(np.uint8)[:, 0])


def _lift_off_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGBA pixels of this `alpha` that, laid on white, have these colours, as far as they can."""
    result = np.concatenate([colours, alpha[..., None]], axis=-1)
    part = (alpha > 0) & (alpha < _OPAQUE)
    opacity = alpha[part, None].astype(np.float32)
    lifted = _OPAQUE - (_OPAQUE - colours[part].astype(np.float32)) * (_OPAQUE / opacity)
    result[part, :3] = np.rint(lifted.clip(0, _OPAQUE)).astype(np.uint8)
    return result
