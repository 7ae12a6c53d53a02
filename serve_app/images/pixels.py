"""Pictures as pixels: PIL pictures to RGB arrays, and arrays of other sizes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.ExifTags
import PIL.Image
from numpy.typing import NDArray

from serve_app.errors import InvalidInput
from serve_app.images.colour import to_srgb
from serve_app.images.geometry import WHOLE, Box, Size

_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_SIDEWAYS = (5, 6, 7, 8)

_OPAQUE = 255
# A tenth of transparency.
_NEARLY_OPAQUE = 230

PICTURE_THREADS = 4
"""Threads of one process that prepare, decode or encode pictures.

Pillow, zlib and torch release the GIL; more threads would only compete with the event loop for the cores.
"""


def convert(
    image: PIL.Image.Image, index: int, max_pixels: int | None = None, *, keep_alpha: bool = False
) -> NDArray[np.uint8]:
    """Convert as `from_pil`, but raise InvalidInput, with the picture's `index`, for every failure."""
    try:
        return from_pil(image, max_pixels, keep_alpha=keep_alpha)
    except MemoryError:
        raise undecodable(index, "there is not enough memory to decode it") from None
    except _Unusable as error:
        raise undecodable(index, str(error)) from None
    except Exception:
        # A picture that was opened from a file is decoded here, so any plugin's error may be raised.
        raise undecodable(index, "the file is damaged or incomplete") from None


def from_pil(image: PIL.Image.Image, max_pixels: int | None = None, *, keep_alpha: bool = False) -> NDArray[np.uint8]:
    """Convert any PIL picture to sRGB: a writable, C-contiguous uint8 array of height × width × 3.

    EXIF orientation is applied, colours are converted to sRGB by the picture's profile, and transparent pixels are
    blended with white, or with `keep_alpha` stay: then a picture that has any gets a fourth channel. Grey with more
    than 8 bits is scaled, since Pillow's own `convert` would clip it: 16-bit and 32-bit integers from 0..65535, floats
    from 0..1, or from 0..255 if a value exceeds 1. If values lie outside of these ranges, the picture's own minimum and
    maximum are used.

    A picture of more than `max_pixels` is shrunk to that many, with its aspect ratio; `image` itself may shrink, too.

    Raises ValueError for a picture without pixels, with NaN or infinity, or of a kind that Pillow misreads, and
    whatever Pillow raises for a damaged file.
    """
    if 0 in image.size:
        raise _Unusable("it has no pixels")
    _check_planes(image)
    if max_pixels is not None:
        smaller = shrunk_size(Size(*image.size), max_pixels)
        # A JPEG file is then decoded at an eighth, a quarter or half of its size.
        image.draft(None, (smaller.width, smaller.height))
    image.load()
    # What Pillow knows of files, and not of pictures made of them.
    orientation, is_negative = _orientation(image), _is_negative(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_8_bit(image, is_negative)
    if max_pixels is not None:
        image = _shrink(image, max_pixels)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if upright.mode == "La":  # Pillow converts premultiplied grey to LA only
        upright = upright.convert("LA")
    upright = to_srgb(upright)
    if upright.has_transparency_data:
        picture = without_idle_alpha(np.array(upright.convert("RGBA")))
        return picture if keep_alpha else lay_on_white(picture)
    return np.array(upright.convert("RGB"))


def without_idle_alpha(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture (RGB or RGBA) without its alpha channel if every pixel is opaque."""
    if picture.shape[2] == 4 and (picture[:, :, 3] == _OPAQUE).all():
        return np.ascontiguousarray(picture[:, :, :3])
    return picture


def lay_on_white(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture (RGB or RGBA) as RGB: transparent pixels blended with white."""
    if picture.shape[2] == 3:
        return picture
    image = PIL.Image.fromarray(picture)
    white = PIL.Image.new("RGBA", image.size, "white")
    return np.array(PIL.Image.alpha_composite(white, image).convert("RGB"))


def finish_alpha(picture: NDArray[np.uint8], background: str) -> NDArray[np.uint8]:
    """Return a picture that a model made with an alpha channel, as a caller asked for its `background`.

    `auto`: a picture that is nowhere clearly transparent is opaque, since models rarely make exactly 255.
    """
    if background == "opaque":
        return lay_on_white(picture)
    if background == "auto" and picture[:, :, 3].min() >= _NEARLY_OPAQUE:
        return np.ascontiguousarray(picture[:, :, :3])
    return picture


def is_sideways(image: PIL.Image.Image) -> bool:
    """Return whether `from_pil` exchanges width and height of this picture, for its EXIF orientation.

    The picture has to be loaded, unless it is a JPEG.
    """
    return _orientation(image) in _SIDEWAYS


def shrunk_size(size: Size, max_pixels: int) -> Size:
    """Return `size`, or the size of the same aspect ratio that has `max_pixels` at most, up to rounding down."""
    if size.pixels <= max_pixels:
        return size
    scale = math.sqrt(max_pixels / size.pixels)
    return Size(max(1, int(size.width * scale)), max(1, int(size.height * scale)))


def _shrink(image: PIL.Image.Image, max_pixels: int) -> PIL.Image.Image:
    size = Size(*image.size)
    smaller = shrunk_size(size, max_pixels)
    if smaller == size:
        return image
    if image.mode in ("1", "P", "PA") or "transparency" in image.info:
        # Neither the numbers of a palette nor a colour that means transparent can be mixed with their neighbours.
        image = image.convert("RGBA" if image.has_transparency_data else "L" if image.mode == "1" else "RGB")
    return image.resize((smaller.width, smaller.height), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)


class _Unusable(ValueError):
    """A picture that Pillow can read and this server refuses; the message is written for the caller."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Turn errors about pictures into errors about those of another field than `images`."""
    try:
        yield
    except InvalidInput as error:
        if error.param != "images":
            raise
        raise InvalidInput(f"{field}: {error.message}", param=field) from None


def undecodable(index: int, reason: str) -> InvalidInput:
    """Return the error for the picture at this index of the request."""
    return InvalidInput(f"Invalid image format at index {index}: {reason}", param="images")


def _orientation(image: PIL.Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:
        # Picture viewers show a photo with damaged EXIF as it is stored, and so does this server.
        return None
    return orientation if isinstance(orientation, int) else None


_TIFF_PHOTOMETRIC, _TIFF_PLANES, _TIFF_BITS = 262, 284, 258


def _check_planes(image: PIL.Image.Image) -> None:
    """Raise ValueError for a TIFF file whose 16-bit colours lie in a plane each, which Pillow 13 mixes up."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and tags.get(_TIFF_PLANES) == 2 and max(tags.get(_TIFF_BITS, (1,))) > 8:
        raise _Unusable("a TIFF file with more than 8 bits must have its colours together, not a plane for each")


def _is_negative(image: PIL.Image.Image) -> bool:
    """Return whether 0 is white (MinIsWhite) in a TIFF file, which Pillow 13 knows for up to 8 bits only."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_TIFF_PHOTOMETRIC) == 0


def _grey_to_8_bit(image: PIL.Image.Image, is_negative: bool) -> PIL.Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _Unusable("it holds NaN or infinity")
    black, white = _range(float(values.min()), float(values.max()), values.dtype.kind == "f")
    if is_negative:
        black, white = white, black
    grey = values.astype(np.float32)
    grey -= black
    grey *= 255.0 / (white - black)
    result: NDArray[np.uint8] = np.rint(grey, out=grey).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        result[values == transparent] = 255
    converted = PIL.Image.fromarray(result)
    converted.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return converted


def _range(low: float, high: float, is_float: bool) -> tuple[float, float]:
    """Return the values of black and of white for a grey picture with values from `low` to `high`."""
    for white in (1.0, 255.0) if is_float else (65535.0,):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high if high > low else low + 1


def resize(pixels: NDArray[np.uint8], size: Size, crop: Box = WHOLE) -> NDArray[np.uint8]:
    """Resize the part `crop` of a picture to exactly `size` (Lanczos). A whole picture of that size stays as it is.

    The edges of the part may lie between pixels: whole pixels of a small picture would be off by several of the result.
    """
    height, width = pixels.shape[:2]
    if crop == WHOLE and (height, width) == (size.height, size.width):
        return pixels
    left, top, right, bottom = crop
    resized = PIL.Image.fromarray(pixels).resize(
        (size.width, size.height),
        PIL.Image.Resampling.LANCZOS,
        box=(left * width, top * height, right * width, bottom * height),
    )
    return np.asarray(resized)
