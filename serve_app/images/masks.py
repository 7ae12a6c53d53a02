"""Masks: which pixels of a picture an edit may change."""

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from serve_app.images.pixels import from_pil

MASK_THRESHOLD = 128
"""The grey from which on a pixel of a mask means: edit. Compression puts shades between black and white."""

_RGBA = 4


def mask_from_pil(image: PIL.Image.Image) -> NDArray[np.bool_]:
    """Convert a PIL picture to a mask, height × width. Raises what `from_pil` raises.

    As in OpenAI's API, transparent pixels are edited. A picture without any is read as grey, of which white is edited.
    """
    picture = from_pil(image, keep_alpha=True)
    if picture.shape[2] == _RGBA:
        return picture[:, :, 3] < MASK_THRESHOLD
    return np.asarray(PIL.Image.fromarray(picture).convert("L")) >= MASK_THRESHOLD
