"""Untrusted picture files: their size, from the header, and their pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size, check_picture_size
from serve_app.images.pixels import convert, undecodable
from serve_app.settings import LimitSettings

# Pillow decodes these formats in its own code. Left out on purpose: EPS and WMF run programs or system code, ICO and
# ICNS contain pictures whose size is unknown until they are decoded.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
READ_FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM"

# Decoding passes over the whole picture once per scan. Cameras and encoders write about ten scans; those of an embedded
# thumbnail count too.
_JPEG_SCAN = b"\xff\xda"
_MAX_JPEG_SCANS = 100


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
