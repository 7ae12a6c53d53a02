"""Pictures: decode untrusted bytes, encode results, and the rules for sizes. Pillow and numpy only."""

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

# Pillow's readers of these formats decode in-process. Left out on purpose: EPS and WMF run programs or system code,
# ICO and ICNS hold pictures whose size is not known before they are decoded.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
READ_FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM"

# From this quality on JPEG keeps colour at full resolution: at 100 a value is off by 0.5 on average, else by 2.5.
_JPEG_FULL_COLOUR_QUALITY = 90

# Each scan goes over the whole picture. Cameras and encoders make about ten; a thumbnail inside counts too.
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

Pillow, zlib and torch release the GIL; more threads only compete with the event loop for the cores.
"""

SIZE_PATTERN = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height in pixels. Raises ValueError for less than one."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"must be at least 1x1, not {self.width}x{self.height}")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read `WxH`. Raises ValueError for anything else, zero included."""
        match = SIZE_PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"must be `auto` or WIDTHxHEIGHT in pixels, such as 1024x768, not {text[:40]!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def aspect_ratio(self) -> float:
        """Long side over short side, at least 1."""
        return max(self.width, self.height) / min(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """What sizes a model can make: `native_area` in pixels, and the multiple that both sides must have."""

    native_area: int
    multiple: int

    def auto(self, picture: Size) -> Size:
        """The picture's aspect ratio at the native area.

        As `calculate_dimensions` of diffusers' QwenImageEditPipeline, which rounds to 32 where `multiple` is 16; a side
        never rounds to zero.
        """
        width = math.sqrt(self.native_area * picture.width / picture.height)
        height = width * picture.height / picture.width
        grid = 2 * self.multiple
        return Size(max(grid, round(width / grid) * grid), max(grid, round(height / grid) * grid))

    def cover(self, size: Size) -> Size:
        """The smallest size the model can make that is at least `size` on both sides."""
        grid = self.multiple
        return Size(math.ceil(size.width / grid) * grid, math.ceil(size.height / grid) * grid)


def check_picture_size(size: Size, index: int, limits: LimitSettings) -> None:
    """Raise InvalidInput for a picture with too many pixels, or too long for its width."""
    if size.pixels > limits.max_image_pixels:
        raise InvalidInput(
            f"Image at index {index} is too large: {size} has more than {limits.max_image_pixels} pixels",
            param="images",
        )
    if size.aspect_ratio > limits.max_aspect_ratio:
        raise InvalidInput(
            f"Image at index {index} is longer than {limits.max_aspect_ratio:g}:1: {size}", param="images"
        )


def measure(data: bytes, index: int, limits: LimitSettings) -> Size:
    """The size of an untrusted picture file, as its header tells it. Arguments and errors as of `decode`."""
    with _opened(data, index, limits) as image:
        return Size(*image.size)


def decode(data: bytes, index: int, limits: LimitSettings) -> NDArray[np.uint8]:
    """The first frame of an untrusted picture file as RGB, height × width × 3.

    Only the header is read before the limits are checked. `index` is the picture's place in the request, for messages.
    Raises InvalidInput for everything that is wrong with the file. May take minutes, or end the process, where a file
    was made for that: `decoders` has the same in processes of their own.
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
        # Pillow has a limit of its own, for the whole process; at the default settings ours is the lower one.
        raise InvalidInput(
            f"Image at index {index} is too large: at most {limits.max_image_pixels} pixels are allowed", param="images"
        ) from None
    except PIL.UnidentifiedImageError:
        raise undecodable(index, f"not a {READ_FORMATS_TEXT} file, or its header is damaged") from None
    except Exception:
        # Pillow's plugins raise SyntaxError, struct.error, ValueError and more when a header is damaged.
        raise undecodable(index, "the file is damaged or incomplete") from None


def convert(image: PIL.Image.Image, index: int) -> NDArray[np.uint8]:
    """As `from_pil`, but whatever goes wrong is an InvalidInput that names the picture by its `index`."""
    try:
        return from_pil(image)
    except MemoryError:
        raise undecodable(index, "there is not enough memory to decode it") from None
    except _Unusable as error:
        raise undecodable(index, str(error)) from None
    except Exception:
        # A picture opened from a file is decoded here, and any plugin's error can come out.
        raise undecodable(index, "the file is damaged or incomplete") from None


def from_pil(image: PIL.Image.Image) -> NDArray[np.uint8]:
    """Any PIL picture as RGB: a writable, C-contiguous uint8 array of height × width × 3.

    EXIF orientation is applied and alpha is laid on white. Deep grey is scaled, where Pillow's own convert clips:
    16-bit from 0..65535; 32-bit integers from 0..65535 too; floats from 0..1, or from 0..255 where values exceed 1.
    Values beyond these ranges are scaled from the picture's own minimum and maximum.

    Raises ValueError for a picture without pixels or with NaN or infinity, and what Pillow raises for a damaged file.
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
    """A picture file of `pixels`, height × width × 3.

    `compression` is the quality of jpeg and webp, 0 to 100; png is lossless whatever it says, and so is webp at 100.
    """
    image = PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    if output_format == "png":
        # Run-length matching only: the fastest setting at the size of level 1, for the noise of generated pictures.
        image.save(file, "PNG", compress_level=1, compress_type=3)
    elif output_format == "jpeg":
        subsampling = 0 if compression >= _JPEG_FULL_COLOUR_QUALITY else 2
        image.save(file, "JPEG", quality=compression, subsampling=subsampling)
    elif compression == 100:
        # Lossy WebP halves the colour resolution at every quality, so that 100 would not be what it says.
        image.save(file, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(file, "WEBP", quality=compression, method=2)
    return file.getvalue()


class _Unusable(ValueError):
    """A picture that Pillow reads and we do not; the message is written for the caller."""


def undecodable(index: int, reason: str) -> InvalidInput:
    """The picture at this place of the request cannot be used."""
    return InvalidInput(f"Invalid image format at index {index}: {reason}", param="images")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:
        # Damaged EXIF: viewers show such a photo as it is stored, and so do we.
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
    """What is black and what is white in deep grey with values from `low` to `high`."""
    for white in (1.0, 255.0) if is_float else (65535.0,):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high if high > low else low + 1


def resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The picture at exactly that size (Lanczos); the same array where it has it already."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).resize((size.width, size.height), PIL.Image.Resampling.LANCZOS))
