"""Colours: pictures of other colour spaces to sRGB, and the ICC profiles that describe colour spaces."""

import io
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms

Chromaticities = tuple[tuple[float, float], ...]
"""The x and y of white, red, green and blue, in this order."""

MAX_PROFILE_BYTES = 8 * 2**20
"""Bytes of the largest ICC profile that is read. Those of printers have 3 MB."""

_D65 = (0.3127, 0.3290)
_SRGB: Chromaticities = (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))

# ITU-T H.273, table 2. Left out: 4, 8 and 10, which no picture has that a person would send.
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    5: (_D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}

# White of diffuse surfaces in HDR pictures, in cd/m² (ITU-R BT.2408). sRGB has nothing brighter: highlights are cut.
_HDR_WHITE = 203.0

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From encoded values, 0 to 1, to light, where 1 is white."""


def _srgb_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _bt709_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(value < 0.081, value / 4.5, ((value + 0.099) / 1.099) ** (1 / 0.45))


def _pq_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084, with white at `_HDR_WHITE`."""
    root = value ** (32 / 2523)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
    return np.minimum(light * 10_000 / _HDR_WHITE, 1)


def _hlg_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """ITU-R BT.2100 on a display of 1000 cd/m², with white at `_HDR_WHITE`, each channel by itself."""
    scene = np.where(value <= 0.5, value**2 / 3, (np.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.minimum(scene**1.2 * 1000 / _HDR_WHITE, 1)


def _power(exponent: float) -> Curve:
    return lambda value: value**exponent


# ITU-T H.273, table 3.
_TRANSFERS: dict[int, Curve] = {
    1: _bt709_light, 6: _bt709_light, 14: _bt709_light, 15: _bt709_light,
    4: _power(2.2), 5: _power(2.8), 8: _power(1.0), 13: _srgb_light, 16: _pq_light, 18: _hlg_light,
}  # fmt: skip


def knows_code_points(primaries: int, transfer: int) -> bool:
    """Return whether these code points of ITU-T H.273 have a meaning here."""
    return primaries in _PRIMARIES and transfer in _TRANSFERS


def profile_of_code_points(primaries: int, transfer: int) -> bytes | None:
    """Return the ICC profile of code points of ITU-T H.273, as in PNG's cICP; None for unknown ones and for sRGB."""
    if not knows_code_points(primaries, transfer) or (primaries, transfer) == (1, 13):
        return None
    return make_profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def _embedded_profile(info: Mapping[Any, Any]) -> bytes | None:
    """Return the ICC profile that Pillow read from a file, or that its description of the colours amounts to."""
    if profile := info.get("icc_profile"):
        return bytes(profile) if len(profile) <= MAX_PROFILE_BYTES else None
    if nclx := info.get("nclx_profile"):
        return profile_of_code_points(nclx["color_primaries"], nclx["transfer_characteristics"])
    if "srgb" in info:
        return None
    return _profile_of_png(info.get("gamma"), info.get("chromaticity"))


def _profile_of_png(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """Return the profile of PNG's gAMA and cHRM chunks. A gamma of 1 ÷ 2.2 with sRGB's primaries means sRGB."""
    if not gamma:
        return None
    points = _SRGB
    if chromaticity and len(chromaticity) == 8:
        points = tuple(zip(chromaticity[::2], chromaticity[1::2], strict=True))
    if abs(gamma - 0.45455) < 0.0005 and np.allclose(points, _SRGB, atol=0.001):
        return None
    return make_profile(points, _power(1 / gamma))


# --- conversion ---------------------------------------------------------------------------------------------------

# The modes of Pillow whose values mean something in a profile's colour space, after `_for_profile`.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert a picture with an ICC profile, or PNG's description of its colours, to sRGB.

    Relative colorimetric, with black point compensation. Alpha stays as it is. A picture without a profile, with a
    damaged one, with one of another kind of colours, or with one that equals sRGB within 1 of 255 is returned
    unchanged: a viewer, too, would show it as it is.
    """
    try:
        profile = _embedded_profile(image.info)
        if profile is None:
            return image
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        colours = _for_profile(image, mode)
        if colours is None:
            return image
        transform = _transform(source, mode)
        if _changes_nothing(transform, mode):
            return image
        converted = transform.apply(colours)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError):
        return image
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def _for_profile(image: PIL.Image.Image, mode: str) -> PIL.Image.Image | None:
    """Return the picture's colours, without alpha, in the mode of its profile; None if they are of another kind."""
    if mode == "RGB" and image.mode not in ("CMYK", "LAB", "YCbCr", "HSV"):
        return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    if mode == "L" and image.mode in ("L", "LA", "1"):
        return image.convert("L")
    return image if image.mode == mode == "CMYK" else None


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(
        source,
        ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform moves no colour of a cube of 9 × 9 × 9 by more than 1 of 255."""
    if mode == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    if mode == "L":
        cube = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    probe = PIL.Image.fromarray(cube).convert(mode)
    moved = np.asarray(transform.apply(probe)).astype(int) - cube
    return bool(np.abs(moved).max() <= 1)


# --- profiles -----------------------------------------------------------------------------------------------------

# ICC.1:2022, white of the profile connection space, and the Bradford transform of its annex E.
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_POINTS = 4096


@cache
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB (IEC 61966-2-1), with its curve as a formula: 0.6 kB."""
    numbers = [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]
    return _profile(_SRGB, b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, numbers)), "sRGB")


def make_profile(points: Chromaticities, light: Curve) -> bytes:
    """Return an ICC profile (version 4.4) of three primaries and one curve for each of them.

    Raises ValueError for points that are no triangle around the white.
    """
    values = np.rint(light(np.linspace(0, 1, _CURVE_POINTS)) * 65535).astype(">u2")
    return _profile(points, b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes(), "RGB")


def _profile(points: Chromaticities, curve: bytes, name: str) -> bytes:
    adaptation, primaries = _matrices(points)
    tags = {
        b"desc": _text(name),
        b"cprt": _text("CC0"),
        b"wtpt": _xyz(_D50),
        b"chad": b"sf32\0\0\0\0" + b"".join(map(_fixed, adaptation.flatten())),
        **{tag: _xyz(column) for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries.T, strict=True)},
    }
    table, data = b"", b""
    start = 128 + 4 + 12 * (len(tags) + 3)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        table += tag + struct.pack(">II", start + len(data), len(curve))
    data += curve + b"\0" * (-len(curve) % 4)
    body = struct.pack(">I", len(tags) + 3) + table + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"\0\0\0\0", 0x04400000, b"mntr", b"RGB ", b"XYZ ")
    # A fixed date, so that equal results are equal files.
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 24 + _xyz(_D50)[8:]
    return header.ljust(128, b"\0") + body


def _matrices(points: Chromaticities) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the adaptation from the points' white to D50, and the primaries' XYZ under D50 as columns."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points if y > 0])
    if len(xyz) < 4 or abs(np.linalg.det(xyz[1:])) < 1e-6:
        raise ValueError("the primaries are no triangle")
    white, primaries = xyz[0], xyz[1:].T
    scales = np.linalg.solve(primaries, white)
    if (scales <= 0).any():
        raise ValueError("the white lies outside of the primaries")
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD
    return adaptation, adaptation @ (primaries * scales)


def _fixed(value: float) -> bytes:
    """Return an s15Fixed16Number of ICC."""
    return struct.pack(">i", round(value * 65536))


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded
