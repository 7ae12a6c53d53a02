"""JPEG files as viewers read them: a file that lacks only its last marker is whole."""

_START, _SCAN, _END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"

# Decoding passes over the whole picture once per scan. Cameras and encoders write about ten scans; those of an embedded
# thumbnail count too.
MAX_SCANS = 100

# Coded data, and the opposite of each of its bits: of one of them at least, something is seen in a picture that lacks
# some of its own, since no code of a prefix code is completed by both.
_FILLERS = (b"\x35\xca\x96\x69" * 64, b"\xca\x35\x69\x96" * 64)


def has_too_many_scans(data: bytes) -> bool:
    """Return whether a file has more than MAX_SCANS scans."""
    return data.count(_SCAN) > MAX_SCANS


def lacks_end(data: bytes) -> bool:
    """Return whether no end marker follows the last scan: the coded data of a scan cannot contain one."""
    last_scan = data.rfind(_SCAN)
    return data.startswith(_START) and last_scan > 0 and data.find(_END, last_scan) < 0


def with_ends(data: bytes) -> list[bytes]:
    """Return the file with an end marker, and with other coded data before it.

    libjpeg fills in what is missing without an error. A file that lacks nothing but its end has the same pixels in all
    of them.
    """
    # Half of the marker may be left.
    rest = data.rstrip(b"\xff")
    return [rest + filler + _END for filler in (b"", *_FILLERS)]
