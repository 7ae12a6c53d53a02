"""Colours of other spaces to sRGB, against colour-science."""

import io
from collections.abc import Callable

import colour
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageCms

from serve_app.images.colour import make_profile, profile_of_code_points, srgb_profile, to_srgb
from serve_app.images.pixels import from_pil
from serve_app.request import Pixels

# Every corner, every axis, and points between them.
LEVELS = np.linspace(0, 255, 16).round().astype(np.uint8)
CUBE: Pixels = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), axis=-1).reshape(64, 64, 3)

Light = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def srgb_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(colour.cctf_decoding(value, function="sRGB"))


def pq_light(value: NDArray[np.float64]) -> NDArray[np.float64]:
    # 203 cd/m² are white: ITU-R BT.2408.
    return np.asarray(np.clip(colour.models.eotf_ST2084(value) / 203, 0, 1))


def expected(space: str, light: Light) -> NDArray[np.float64]:
    """Return the cube, whose values are of this space, in sRGB: relative colorimetric, cut to what sRGB has."""
    source, target = colour.RGB_COLOURSPACES[space], colour.RGB_COLOURSPACES["sRGB"]
    linear = colour.RGB_to_RGB(light(CUBE / 255), source, target, chromatic_adaptation_transform="Bradford")
    return 255 * np.asarray(colour.cctf_encoding(np.clip(linear, 0, 1), function="sRGB"), np.float64)


def converted(profile: bytes | None, pixels: Pixels = CUBE) -> Pixels:
    image = PIL.Image.fromarray(pixels)
    image.info["icc_profile"] = profile
    return np.asarray(to_srgb(image))


@pytest.mark.parametrize(
    ("space", "primaries", "transfer", "light"),
    [
        ("Display P3", 12, 13, srgb_light),
        ("DCI-P3", 11, 13, srgb_light),
        ("ITU-R BT.2020", 9, 13, srgb_light),
        ("ITU-R BT.2020", 9, 8, lambda value: value),
        ("ITU-R BT.2020", 9, 16, pq_light),
        ("ITU-R BT.709", 1, 1, colour.models.oetf_inverse_BT709),
        ("ITU-R BT.709", 1, 4, lambda value: value**2.2),
        ("SMPTE C", 6, 13, srgb_light),
        ("ITU-R BT.470 - 625", 5, 13, srgb_light),
    ],
)
def test_code_points_mean_what_colour_science_says(space: str, primaries: int, transfer: int, light: Light) -> None:
    wanted = expected(space, light)
    assert np.abs(wanted - CUBE).mean() > 1
    assert np.abs(converted(profile_of_code_points(primaries, transfer)) - wanted).max() <= 1


def test_hybrid_log_gamma_has_its_white_at_three_quarters() -> None:
    grey = np.round(np.array([0, 0.25, 0.5, 0.75, 1]) * 255).astype(np.uint8)[None, :, None].repeat(3, -1)
    # ITU-R BT.2100, table 5, on a display of 1000 cd/m², with 203 cd/m² as white.
    scene = np.asarray(colour.models.oetf_inverse_BT2100_HLG(grey / 255))
    wanted = np.asarray(colour.cctf_encoding(np.minimum(scene**1.2 * 1000 / 203, 1), function="sRGB")) * 255
    assert np.abs(converted(profile_of_code_points(9, 18), grey) - wanted).max() <= 1
    assert wanted[0, 3, 0] > 254


@pytest.mark.parametrize("space", ["Adobe RGB (1998)", "ProPhoto RGB", "Apple RGB"])
def test_profiles_of_other_spaces_mean_what_colour_science_says(space: str) -> None:
    source = colour.RGB_COLOURSPACES[space]
    points = (tuple(source.whitepoint), *map(tuple, source.primaries))
    profile = make_profile(points, lambda value: np.asarray(source.cctf_decoding(value)))
    assert (
        np.abs(converted(profile) - expected(space, lambda value: np.asarray(source.cctf_decoding(value)))).max() <= 1
    )


def test_gamma_and_primaries_of_a_png() -> None:
    image = PIL.Image.fromarray(CUBE)
    image.info["gamma"] = 1 / 1.8
    assert np.abs(np.asarray(to_srgb(image)) - expected("sRGB", lambda value: value**1.8)).max() <= 1
    image.info["chromaticity"] = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
    assert np.abs(np.asarray(to_srgb(image)) - expected("Display P3", lambda value: value**1.8)).max() <= 1
    image.info["chromaticity"] = (0.3, 0.3) * 4
    assert to_srgb(image) is image


@pytest.mark.parametrize(
    "profile",
    [
        srgb_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        profile_of_code_points(1, 13),
        b"broken",
        (profile_of_code_points(12, 13) or b"")[:200],
        (profile_of_code_points(12, 13) or b"") + bytes(8 * 2**20),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        None,
    ],
    ids=["ours of sRGB", "LittleCMS's of sRGB", "cICP of sRGB", "text", "cut off", "8 MiB", "LAB", "none"],
)
def test_pixels_stay_to_the_bit(profile: bytes | None) -> None:
    np.testing.assert_array_equal(converted(profile), CUBE)


def test_a_profile_that_is_nearly_srgb_moves_nothing() -> None:
    # As rounded by a maker of profiles: 1 of 255 here and there, which would only add noise.
    nearly = make_profile(((0.3127, 0.3290), (0.6402, 0.3300), (0.3000, 0.6003), (0.1500, 0.0600)), srgb_light)
    np.testing.assert_array_equal(converted(nearly), CUBE)


def test_the_darkest_colour_of_a_profile_is_black() -> None:
    paper = make_profile(((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), lambda v: 0.03 + 0.97 * v**2.2)
    black, white = converted(paper, np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))[0]
    assert black.tolist() == [0, 0, 0]
    assert white.tolist() == [255, 255, 255]


def test_alpha_is_no_colour() -> None:
    image = PIL.Image.fromarray(np.dstack([CUBE, np.arange(4096).reshape(64, 64).astype(np.uint8)]))
    image.info["icc_profile"] = profile_of_code_points(12, 13)
    moved = to_srgb(image)
    np.testing.assert_array_equal(np.asarray(moved)[..., 3], np.asarray(image)[..., 3])
    np.testing.assert_array_equal(np.asarray(moved)[..., :3], converted(profile_of_code_points(12, 13)))
    # Colours first, then white below what is transparent.
    clear = from_pil(PIL.Image.merge("RGBA", (*image.split()[:3], PIL.Image.new("L", image.size, 0))))
    assert (clear == 255).all()


def test_grey_and_palettes_with_a_profile() -> None:
    profile = make_profile(((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), lambda value: value)
    grey = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    wanted = np.asarray(colour.cctf_encoding(np.arange(256) / 255, function="sRGB")) * 255
    for image in (grey, grey.convert("P"), grey.convert("LA")):
        image.info["icc_profile"] = profile
        assert np.abs(from_pil(image)[0, :, 1] - wanted).max() <= 1


def test_a_profile_of_another_kind_is_ignored() -> None:
    cmyk = PIL.Image.fromarray(CUBE).convert("CMYK")
    cmyk.info["icc_profile"] = profile_of_code_points(12, 13)
    assert to_srgb(cmyk) is cmyk


def test_our_profile_of_srgb_is_read_by_others() -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    assert ImageCms.getProfileDescription(profile).strip() == "sRGB"
    assert profile.profile.xcolor_space == "RGB "
