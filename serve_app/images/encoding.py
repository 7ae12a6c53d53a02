"""Results as picture files."""

import io
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from serve_app.errors import InvalidInput
from serve_app.images.colour import srgb_profile
from serve_app.images.geometry import Size
from serve_app.images.pixels import lay_on_white

OutputFormat = Literal["png", "jpeg", "webp"]

# From this quality on, JPEG keeps colour at full resolution: at quality 100 a value is off by 0.5 on average instead of
# 2.5.
_JPEG_FULL_COLOUR_QUALITY = 90

# The longest side that a file can have, in pixels.
_MAX_SIDES: dict[OutputFormat, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}


def check_encodable(size: Size, output_format: OutputFormat) -> None:
    """Raise InvalidInput for a size that a file of this format cannot have."""
    most = _MAX_SIDES[output_format]
    if max(size.width, size.height) > most:
        raise InvalidInput(
            f"size: {output_format} has at most {most} pixels a side, not {size}; ask for png", param="size"
        )


def encode(pixels: NDArray[np.uint8], output_format: OutputFormat, compression: int, xmp: str = "") -> bytes:
    """Encode `pixels` (grey, RGB or RGBA) as a picture file.

    `compression` is the quality of jpeg and webp, from 0 to 100. png ignores it and is always lossless; webp is
    lossless at 100. jpeg has no alpha, so the picture is laid on white. Every file says that its colours are sRGB.
    `xmp`: a packet of metadata for the file; empty: none.
    """
    image = PIL.Image.fromarray(lay_on_white(pixels) if output_format == "jpeg" else pixels)
    file = io.BytesIO()
    metadata: dict[str, bytes] = {"icc_profile": srgb_profile(), "xmp": xmp.encode()}
    if output_format == "png":
        # Run-length matching only: on the noise of generated pictures the fastest setting, and as small as level 1.
        image.save(file, "PNG", compress_level=1, compress_type=3, pnginfo=_chunks(xmp))
    elif output_format == "jpeg":
        subsampling = 0 if compression >= _JPEG_FULL_COLOUR_QUALITY else 2
        image.save(file, "JPEG", quality=compression, subsampling=subsampling, **metadata)
    elif compression == 100:
        # Lossy WebP halves the colour resolution at every quality, so quality 100 would still lose detail.
        # `exact` keeps the colours below transparent pixels, too.
        image.save(file, "WEBP", lossless=True, exact=True, quality=0, method=0, **metadata)
    else:
        image.save(file, "WEBP", quality=compression, method=2, **metadata)
    return file.getvalue()


def _chunks(xmp: str) -> PngInfo:
    """Return PNG's mark of sRGB, with the rendering intent for photographs, and the metadata."""
    chunks = PngInfo()
    chunks.add(b"sRGB", b"\0")
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp)
    return chunks
