"""PNG files as viewers read them: what does not bear on the picture is passed over, however large or damaged."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.images.colour import MAX_PROFILE_BYTES, knows_code_points, profile_of_code_points

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Without them no picture can be drawn, so that Pillow judges whether they are damaged.
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
# Those that Pillow reads and that change the picture, with their lengths where these are fixed.
_KEPT = {b"tRNS": None, b"eXIf": None, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}


@dataclass(frozen=True, slots=True)
class PngFile:
    """A PNG file with only the chunks that bear on its picture, and the ICC profile of its colours, if it has one."""

    data: bytes
    profile: bytes | None


def read_png(data: bytes) -> PngFile:
    """Return the chunks of a PNG file that bear on the picture; any other file as it is."""
    if not data.startswith(_SIGNATURE):
        return PngFile(data, None)
    kept: list[memoryview] = [memoryview(data)[: len(_SIGNATURE)]]
    profile = code_points = None
    for kind, chunk in _chunks(data):
        if kind in _CRITICAL or (kind in _KEPT and _is_intact(chunk, _KEPT[kind])):
            kept.append(chunk)
        elif kind == b"iCCP" and profile is None and _is_intact(chunk):
            profile = _unpack_profile(bytes(chunk[8:-4]))
        elif kind == b"cICP" and _is_intact(chunk, 4) and knows_code_points(chunk[8], chunk[9]):
            code_points = (chunk[8], chunk[9])
    # PNG, third edition, section 4.3: the chunk with the highest precedence alone counts.
    if code_points is not None:
        kept = [chunk for chunk in kept if bytes(chunk[4:8]) not in (b"gAMA", b"cHRM", b"sRGB")]
        profile = profile_of_code_points(*code_points)
    return PngFile(b"".join(kept), profile)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, start = memoryview(data), len(_SIGNATURE)
    while start < len(data):
        # Too short at the end of a truncated file.
        length = int.from_bytes(view[start : start + 4], "big")
        end = start + 12 + length
        yield bytes(view[start + 4 : start + 8]), view[start:end]
        start = end


def _is_intact(chunk: memoryview, length: int | None = None) -> bool:
    """Return whether a chunk has this length, if one is given, and the right check sum."""
    given = int.from_bytes(chunk[:4], "big")
    if len(chunk) != given + 12 or length not in (None, given):
        return False
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _unpack_profile(content: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk: a name, a zero, a zero for zlib, and the packed profile."""
    _, _, packed = content.partition(b"\0")
    try:
        # A longer one is cut, and so ignored later.
        return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
