"""The size of a JPEG XL file, from its header: Pillow's plugin knows it only when all is decoded."""

from serve_app.images.geometry import Size

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# Numerator and denominator of width ÷ height, ISO/IEC 18181-1, table D.1.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def read_size(data: bytes) -> Size | None:
    """Return the size of a JPEG XL picture as it is stored; None for other files, and where there is no header."""
    codestream = _codestream(data)
    if codestream is None or len(codestream) < 12:
        return None
    return _Bits(codestream[2:]).read_size()


def _codestream(data: bytes) -> bytes | None:
    """Return the beginning of the codestream, which may lie in a box of a container (ISO/IEC 18181-2)."""
    if data.startswith(_CODESTREAM):
        return data[:16]
    start = 0 if data.startswith(_CONTAINER) else len(data)
    while start + 8 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if kind in (b"jxlc", b"jxlp"):
            # A part of the stream begins with its number.
            content = start + (16 if length == 1 else 8) + (4 if kind == b"jxlp" else 0)
            return data[content : content + 16]
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
        if length < 8:
            return None
        start += length
    return None


class _Bits:
    """The bits of a codestream, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def read_size(self) -> Size:
        small = self._take(1) == 1
        height = self._side(small)
        ratio = _RATIOS.get(self._take(3))
        width = self._side(small) if ratio is None else height * ratio[0] // ratio[1]
        return Size(max(1, width), height)

    def _side(self, small: bool) -> int:
        if small:
            return 8 * (1 + self._take(5))
        return 1 + self._take((9, 13, 18, 30)[self._take(2)])

    def _take(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value
