"""Untrusted picture files: their size, from the header, and their pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pi_heif
import PIL.AvifImagePlugin
import PIL.Image
import pillow_jxl.JpegXLImagePlugin
import puremagic

from serve_app.decoding import jpeg, jpeg_xl, png
from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size, check_picture_size
from serve_app.images.masks import as_changes
from serve_app.images.pixels import convert, is_sideways, undecodable
from serve_app.request import Mask, Picture
from serve_app.settings import LimitSettings

# Left out on purpose: EPS and WMF run programs or system code, ICO and ICNS contain pictures whose size is unknown
# until they are decoded.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JXL", "JPEG2000", "PPM")
READ_FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG XL, JPEG 2000 or PPM"

# MPO is a JPEG with further pictures behind it.
_CAMERA_FORMATS = ("JPEG", "MPO")

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

# puremagic's confidence in what it says of a file, from 0 to 1; below it guesses.
_RECOGNISED = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPicture:
    """A picture in sRGB. `sent_size`: its size in the file, upright, before it was shrunk."""

    pixels: Picture
    sent_size: Size


def prepare_process() -> None:
    """Let decoders start no threads, and leave the bound on pixels to `limits`: for a process that decodes only."""
    PIL.Image.MAX_IMAGE_PIXELS = None
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pi_heif.options.DECODE_THREADS = 1
    pillow_jxl.JpegXLImagePlugin.DECODE_THREADS = 0


def measure(data: bytes, index: int, limits: LimitSettings) -> Size:
    """Return the size of an untrusted picture file, from its header. Arguments and errors are those of `decode`.

    The size is upright for JPEG, the format of cameras. The headers of others do not say how the picture is to be
    turned, so the sides of the decoded picture may be exchanged.
    """
    if (size := jpeg_xl.read_size(data)) is not None:
        # Pillow's plugin would decode the file to open it.
        check_picture_size(size, index, limits)
        return size
    with _opened(data, index, limits) as image:
        return _upright_size(image, *image.size) if image.format in _CAMERA_FORMATS else Size(*image.size)


def decode(
    data: bytes, index: int, limits: LimitSettings, *, keep_alpha: bool = False, shrink: bool = True
) -> DecodedPicture:
    """Decode the first frame of an untrusted picture file.

    `keep_alpha`: as of `from_pil`. `shrink`: a picture of more than `limits.shrink_above_pixels` is made that small
    while it is decoded. Only the header is read before the limits are checked. `index` is the picture's place in the
    request, for messages. Raises InvalidInput for everything that is wrong with the file. A hostile file may take
    minutes, or end the process: `decoding.pool` runs this function in processes of their own.
    """
    max_pixels = limits.shrink_above_pixels if shrink else None

    def decode_whole(file: bytes) -> DecodedPicture:
        with _opened(file, index, limits) as image:
            size = image.size
            pixels = convert(image, index, max_pixels, keep_alpha=keep_alpha)
            return DecodedPicture(pixels, _upright_size(image, *size))

    if not jpeg.lacks_end(data):
        return decode_whole(data)
    first, *others = map(decode_whole, jpeg.with_ends(data))
    if not all(np.array_equal(first.pixels, other.pixels) for other in others):
        raise undecodable(index, "the file is damaged or incomplete")
    return first


def decode_mask(data: bytes, index: int, limits: LimitSettings) -> Mask:
    """Decode an untrusted mask file, at its own size. Arguments and errors are those of `decode`."""
    return as_changes(decode(data, index, limits, keep_alpha=True, shrink=False).pixels)


def _upright_size(image: PIL.Image.Image, width: int, height: int) -> Size:
    return Size(height, width) if is_sideways(image) else Size(width, height)


@contextmanager
def _opened(data: bytes, index: int, limits: LimitSettings) -> Iterator[PIL.Image.Image]:
    if not data:
        raise undecodable(index, "the file is empty")
    try:
        if (size := jpeg_xl.read_size(data)) is not None:
            check_picture_size(size, index, limits)
        file = png.read_png(data)
        with PIL.Image.open(io.BytesIO(file.data), formats=_READ_FORMATS) as image:
            check_picture_size(Size(*image.size), index, limits)
            if image.format in _CAMERA_FORMATS and jpeg.has_too_many_scans(data):
                raise undecodable(index, f"it has more than {jpeg.MAX_SCANS} scans")
            if file.profile is not None:
                image.info["icc_profile"] = file.profile
            yield image
    except InvalidInput:
        raise
    except PIL.UnidentifiedImageError:
        raise undecodable(index, f"not a {READ_FORMATS_TEXT} file, {_what_it_is(data)}") from None
    except Exception:
        # If a header is damaged, Pillow's plugins raise SyntaxError, struct.error, ValueError and others.
        raise undecodable(index, "the file is damaged or incomplete") from None


def _what_it_is(data: bytes) -> str:
    try:
        best = puremagic.magic_string(data)[0]
    except (puremagic.PureError, IndexError):
        return "or its header is damaged"
    return f"but perhaps: {best.name}" if best.confidence >= _RECOGNISED else "or its header is damaged"
