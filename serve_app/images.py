"""Decode untrusted pictures, encode results, and compute sizes. Pillow and numpy only."""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.ExifTags
import PIL.Image
from numpy.typing import NDArray

from serve_app.errors import InvalidInput
from serve_app.settings import LimitSettings

OutputFormat = Literal["png", "jpeg", "webp"]

# Pillow decodes these formats in its own code. Left out on purpose: EPS and WMF run programs or system code, ICO and
# ICNS contain pictures whose size is unknown until they are decoded.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
READ_FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM"

# From this quality on, JPEG keeps colour at full resolution: at quality 100 a value is off by 0.5 on average instead of
# 2.5.
_JPEG_FULL_COLOUR_QUALITY = 90

# Decoding passes over the whole picture once per scan. Cameras and encoders write about ten scans; those of an embedded
# thumbnail count too.
_JPEG_SCAN = b"\xff\xda"
_MAX_JPEG_SCANS = 100

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

SIZE_PATTERN = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height in pixels. Raises ValueError if one of them is less than 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"must be at least 1x1, not {self.width}x{self.height}")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Return the size that `WxH` names. Raises ValueError for any other text, and for zero."""
        match = SIZE_PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"must be `auto` or WIDTHxHEIGHT in pixels, such as 1024x768, not {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def aspect_ratio(self) -> float:
        """Long side divided by short side, at least 1."""
        return max(self.width, self.height) / min(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes that a model can make: `native_area` in pixels, and the `multiple` that both sides must have."""

    native_area: int
    multiple: int

    def auto(self, picture: Size) -> Size:
        """Return the size at the native area that has the picture's aspect ratio.

        The same as `calculate_dimensions` of diffusers' QwenImageEditPipeline, which rounds to 32 for a `multiple` of
        16, except that a side never rounds to zero.
        """
        width = math.sqrt(self.native_area * picture.width / picture.height)
        height = width * picture.height / picture.width
        grid = 2 * self.multiple
        return Size(max(grid, round(width / grid) * grid), max(grid, round(height / grid) * grid))

    def cover(self, size: Size) -> Size:
        """Return the smallest size that the model can make and that is at least `size` on both sides."""
        grid = self.multiple
        return Size(math.ceil(size.width / grid) * grid, math.ceil(size.height / grid) * grid)


def check_picture_size(size: Size, index: int, limits: LimitSettings) -> None:
    """Raise InvalidInput for a picture with too many pixels or too large an aspect ratio."""
    if size.pixels > limits.max_image_pixels:
        raise InvalidInput(
            f"Image at index {index} is too large: {size} has more than {limits.max_image_pixels} pixels",
            param="images",
        )
    if size.aspect_ratio > limits.max_aspect_ratio:
        raise InvalidInput(
            f"Image at index {index} is too long: {size} has an aspect ratio above {limits.max_aspect_ratio:g}:1",
            param="images",
        )


def measure(data: bytes, index: int, limits: LimitSettings) -> Size:
    """Return the size of an untrusted picture file, from its header. Arguments and errors are those of `decode`."""
    with _opened(data, index, limits) as image:
        return Size(*image.size)


def decode(data: bytes, index: int, limits: LimitSettings) -> NDArray[np.uint8]:
    """Decode the first frame of an untrusted picture file to RGB, height × width × 3.

    Only the header is read before the limits are checked. `index` is the picture's place in the request, for messages.
    Raises InvalidInput for everything that is wrong with the file. A hostile file may take minutes, or end the process:
    `decoding.pool` runs this function in processes of their own.
    """
    with _opened(data, index, limits) as image:
        return convert(image, index)


@contextmanager
def _opened(data: bytes, index: int, limits: LimitSettings) -> Iterator[PIL.Image.Image]:
    if not data:
        raise undecodable(index, "the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_READ_FORMATS) as image:
            check_picture_size(Size(*image.size), index, limits)
            if image.format in ("JPEG", "MPO") and data.count(_JPEG_SCAN) > _MAX_JPEG_SCANS:
                raise undecodable(index, f"it has more than {_MAX_JPEG_SCANS} scans")
            yield image
    except InvalidInput:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        # Pillow has its own limit for the whole process; with the default settings our limit is the lower one.
        raise InvalidInput(
            f"Image at index {index} is too large: at most {limits.max_image_pixels} pixels are allowed", param="images"
        ) from None
    except PIL.UnidentifiedImageError:
        raise undecodable(index, f"not a {READ_FORMATS_TEXT} file, or its header is damaged") from None
    except Exception:
        # If a header is damaged, Pillow's plugins raise SyntaxError, struct.error, ValueError and others.
        raise undecodable(index, "the file is damaged or incomplete") from None


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


def encode(pixels: NDArray[np.uint8], output_format: OutputFormat, compression: int) -> bytes:
    """Encode `pixels`, height × width × 3, as a picture file.

    `compression` is the quality of jpeg and webp, from 0 to 100. png ignores it and is always lossless; webp is
    lossless at 100.
    """
    image = PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    if output_format == "png":
        # Run-length matching only: on the noise of generated pictures the fastest setting, and as small as level 1.
        image.save(file, "PNG", compress_level=1, compress_type=3)
    elif output_format == "jpeg":
        subsampling = 0 if compression >= _JPEG_FULL_COLOUR_QUALITY else 2
        image.save(file, "JPEG", quality=compression, subsampling=subsampling)
    elif compression == 100:
        # Lossy WebP halves the colour resolution at every quality, so quality 100 would still lose detail.
        image.save(file, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(file, "WEBP", quality=compression, method=2)
    return file.getvalue()


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
