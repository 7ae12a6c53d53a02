"""Pictures as pixels: PIL pictures to RGB arrays, and arrays of other sizes."""

import numpy as np
import PIL.ExifTags
import PIL.Image
from numpy.typing import NDArray

from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size

_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

PICTURE_THREADS = 4
"""Threads of one process that prepare, decode or encode pictures.

Pillow, zlib and torch release the GIL; more threads would only compete with the event loop for the cores.
"""


def convert(image: PIL.Image.Image, index: int) -> NDArray[np.uint8]:
    """Convert as `from_pil`, but raise InvalidInput, with the picture's `index`, for every failure."""
    try:
        return from_pil(image)
    except MemoryError:
        raise undecodable(index, "there is not enough memory to decode it") from None
    except _Unusable as error:
        raise undecodable(index, str(error)) from None
    except Exception:
        # A picture that was opened from a file is decoded here, so any plugin's error may be raised.
        raise undecodable(index, "the file is damaged or incomplete") from None


def from_pil(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """Convert any PIL picture to RGB: a writable, C-contiguous uint8 array of height × width × 3.

    EXIF orientation is applied, and transparent pixels are blended with white. Grey with more than 8 bits is scaled,
    since Pillow's own `convert` would clip it: 16-bit and 32-bit integers from 0..65535, floats from 0..1, or from
    0..255 if a value exceeds 1. If values lie outside of these ranges, the picture's own minimum and maximum are used.

    Raises ValueError for a picture without pixels or with NaN or infinity, and whatever Pillow raises for a damaged
    file.
    """
    image.load()
    if 0 in image.size:
        raise _Unusable("it has no pixels")
    upright = _upright(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        return np.repeat(_grey_to_8_bit(upright)[:, :, np.newaxis], 3, axis=2)
    if upright.mode == "La":  # Pillow converts premultiplied grey to LA only
        upright = upright.convert("LA")
    if upright.has_transparency_data:
        white = PIL.Image.new("RGBA", upright.size, "white")
        upright = PIL.Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


class _Unusable(ValueError):
    """A picture that Pillow can read and this server refuses; the message is written for the caller."""


def undecodable(index: int, reason: str) -> InvalidInput:
    """Return the error for the picture at this index of the request."""
    return InvalidInput(f"Invalid image format at index {index}: {reason}", param="images")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:
        # Picture viewers show a photo with damaged EXIF as it is stored, and so does this server.
        return image
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _grey_to_8_bit(image: PIL.Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _Unusable("it holds NaN or infinity")
    black, white = _range(float(values.min()), float(values.max()), values.dtype.kind == "f")
    grey = values.astype(np.float32)
    grey -= black
    grey *= 255.0 / (white - black)
    result: NDArray[np.uint8] = np.rint(grey, out=grey).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result[values == transparent] = 255
    return result


def _range(low: float, high: float, is_float: bool) -> tuple[float, float]:
    """Return the values of black and of white for a grey picture with values from `low` to `high`."""
    for white in (1.0, 255.0) if is_float else (65535.0,):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high if high > low else low + 1


def resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize a picture to exactly `size` (Lanczos). A picture that has this size is returned as it is."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).resize((size.width, size.height), PIL.Image.Resampling.LANCZOS))
