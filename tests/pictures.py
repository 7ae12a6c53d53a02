"""Picture files for tests, and the pixels in answers."""

import base64
import io
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from serve_app.request import Pixels

PHONE = Path(__file__).parent / "phone.heic"
"""A HEIC of 48 × 64 as phones make them, stored on its side: Display P3's (200, 80, 60), white at the top right."""


def png(value: int = 0, width: int = 8, height: int = 6) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def mask_png(changes: Any) -> bytes:
    """Return the mask as grey, white where the picture may change. `changes`: height × width, anything of 0 and 1."""
    return file_of(PIL.Image.fromarray(np.asarray(changes, np.uint8) * 255), "PNG")


def pixels_of(item: dict[str, Any]) -> Pixels:
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB"))


def photo(width: int = 64, height: int = 48) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1).astype(np.uint8)


def file_of(image: PIL.Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def half_a_jpeg() -> bytes:
    """Return the first half of a file of 64 × 64."""
    data = file_of(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    return data[: len(data) // 2]


def one_bit_png(width: int, height: int) -> bytes:
    """Return a white PNG of one bit a pixel, made without holding its pixels in memory."""
    row, packer = b"\0" + b"\xff" * ((width + 7) // 8), zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def source_type(data: bytes) -> str | None:
    """Return IPTC's digital source type in a file's XMP metadata; None if it has none."""
    packet = PIL.Image.open(io.BytesIO(data)).info.get("xmp")
    if packet is None:
        return None
    found = ElementTree.fromstring(packet).find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    return None if found is None else found.text
