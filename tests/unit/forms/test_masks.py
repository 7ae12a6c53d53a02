"""Masks and transparency, in bodies of both kinds."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.requests import Request

from serve_app.errors import InvalidInput, PayloadTooLarge
from serve_app.forms.form import EditForm, parse
from serve_app.forms.memory import MemoryLimiter, Reservation
from serve_app.request import Mask, Picture
from serve_app.settings import AppSettings, LimitSettings
from tests.pictures import file_of, half_a_jpeg, mask_png, photo, png
from tests.uploads import MIB, PICTURE, PROMPT, SETTINGS, Part, Upload, body_of, form_of, picture, text

LEFT, RIGHT = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
LEFT[:, :4] = RIGHT[:, 4:] = True


def file(name: str, content: bytes, file_name: str = "a.png") -> Part:
    return (name, (file_name, content, "image/png"))


def mask(changes: Mask = LEFT, name: str = "mask") -> Part:
    return file(name, mask_png(changes))


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def form_of_json(settings: AppSettings = SETTINGS, **fields: Any) -> EditForm:
    return Upload([json.dumps({"prompt": "x", **fields}).encode()], "application/json").parse(settings)


def masks_of(form: EditForm) -> list[Any]:
    return [None if changes is None else changes.tolist() for changes in form.request.masks]


def refusal(*parts: Part, settings: AppSettings = SETTINGS) -> str:
    with pytest.raises(InvalidInput) as caught:
        form_of(PROMPT, *parts, settings=settings)
    assert caught.value.param == "mask"
    return caught.value.message


def see_through(seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 4), np.uint8)


def png_of(pixels: Picture, **options: Any) -> bytes:
    return file_of(PIL.Image.fromarray(pixels), "PNG", **options)


# --- which pictures a mask belongs to -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask", "mask[]"])
def test_one_mask_is_for_every_image_and_several_are_one_for_each(name: str) -> None:
    two = [picture(value=5), picture(value=6)]
    form = form_of(mask(LEFT, name), PROMPT, *two)
    assert masks_of(form) == [LEFT.tolist()] * 2
    # It is kept once.
    assert form.request.mask[0] is form.request.mask[1]
    assert masks_of(form_of(PROMPT, two[0], mask(LEFT, name), two[1], mask(RIGHT, name))) == [
        LEFT.tolist(),
        RIGHT.tolist(),
    ]
    assert masks_of(form_of(PROMPT, *two)) == [None, None]


def test_of_several_image_fields_the_mask_belongs_to_the_one_that_is_edited() -> None:
    form = form_of(PROMPT, picture("image[]", 5), file("image[]", png(6, 20, 10)), mask())
    assert masks_of(form) == [LEFT.tolist()]
    assert len(form.request.references_by_image[0]) == 1
    assert refusal(picture("image"), picture("image"), mask(), mask()).startswith(
        "mask: 2 masks for 1 images; send one"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b64(mask_png(LEFT)), [LEFT, LEFT]),
        (f"data:image/png;base64,{b64(mask_png(LEFT))}", [LEFT, LEFT]),
        ({"image_url": b64(mask_png(LEFT))}, [LEFT, LEFT]),
        ([b64(mask_png(LEFT))], [LEFT, LEFT]),
        ([{"url": b64(mask_png(LEFT))}, b64(mask_png(RIGHT))], [LEFT, RIGHT]),
        ([], [None, None]),
        (None, [None, None]),
    ],
)
def test_json_has_one_mask_or_a_list(value: Any, expected: list[Any]) -> None:
    form = form_of_json(images=[b64(png(1, 8, 8))] * 2, mask=value)
    assert masks_of(form) == [None if each is None else each.tolist() for each in expected]


@pytest.mark.parametrize("header", ['; filename=""', '; filename="mask.png"', ""])
def test_a_mask_left_empty_is_no_mask(header: str) -> None:
    body, content_type = body_of([PROMPT, picture(value=7)])
    boundary = content_type.partition("boundary=")[2]
    empty = f'--{boundary}\r\nContent-Disposition: form-data; name="mask"{header}\r\n\r\n\r\n'.encode()
    assert masks_of(Upload([empty + body], content_type).parse()) == [None]


# --- what a mask means --------------------------------------------------------------------------------------------


def test_transparent_means_edit_and_without_transparency_white_does() -> None:
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[:, :4, 3] = 0
    assert masks_of(form_of(PROMPT, PICTURE, file("mask", png_of(clear)))) == [LEFT.tolist()]
    assert masks_of(form_of(PROMPT, PICTURE, mask(RIGHT))) == [RIGHT.tolist()]


def test_a_picture_with_a_mask_keeps_its_pixels_and_without_one_it_is_shrunk() -> None:
    settings = AppSettings(limits=LimitSettings(shrink_above_pixels=2**16))
    pixels = photo(400, 300)
    one = file("images", png_of(pixels))
    masked = form_of(PROMPT, one, mask(np.ones((300, 400), bool)), settings=settings).request
    np.testing.assert_array_equal(masked.images[0], pixels)
    assert masked.mask[0].shape == (300, 400)
    assert form_of(PROMPT, one, settings=settings).request.images[0].shape[0] < 300


def test_an_upright_mask_fits_a_picture_that_is_stored_on_its_side() -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6
    for file_format in ("JPEG", "PNG"):
        one = ("images", ("a", file_of(PIL.Image.fromarray(photo(64, 48)), file_format, exif=exif)))
        assert form_of(PROMPT, one, mask(np.ones((64, 48), bool))).request.mask[0].shape == (64, 48)
        message = refusal(one, mask(np.ones((48, 64), bool)))
        assert message.startswith("mask: the mask of the image at index 0 is 64x48, and the image 48x64; ")


@pytest.mark.parametrize("size", [None, "original", "auto"])
def test_results_with_a_mask_are_bounded_as_those_of_the_original_size(size: str | None) -> None:
    few = AppSettings(limits=LimitSettings(max_original_pixels=100))
    sizes = [] if size is None else [text("size", size)]
    form_of(PROMPT, PICTURE, mask(), *sizes, settings=few)
    with pytest.raises(InvalidInput, match="128 pixels together, more than 100") as caught:
        form_of(PROMPT, PICTURE, mask(), *sizes, text("n", "2"), settings=few)
    assert caught.value.param == "size"
    form_of(PROMPT, PICTURE, mask(), text("size", "64x64"), text("n", "2"), settings=few)


def test_masks_and_pictures_that_are_not_shrunk_are_reserved() -> None:
    def held(*parts: Part) -> int:
        """Return the pixels that the edit reserves."""
        limiter = MemoryLimiter(LimitSettings())
        body, content_type = body_of([PROMPT, file("images", png(1, 400, 300)), *parts])
        upload = Upload([body], content_type)
        settings = AppSettings(limits=LimitSettings(shrink_above_pixels=2**16))
        asyncio.run(parse(Request(upload.scope, upload.receive), settings, reservation=Reservation(limiter)))
        return limiter._pixels

    assert held() <= 2**16
    whole = mask(np.ones((300, 400), bool))
    # The picture, the mask, and the output.
    assert held(whole) == 3 * 400 * 300
    assert held(whole, text("size", "64x64")) == 2 * 400 * 300


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_is_refused_before_any_picture_is_decoded() -> None:
    message = refusal(file("images", half_a_jpeg()), mask())
    assert message == ("mask: the mask of the image at index 0 is 8x8, and the image 64x64; they must have one size")
    # A photo is named as people see it, not as the camera has stored it.
    sideways = PIL.Image.Exif()
    sideways[274] = 6
    stored = file_of(PIL.Image.fromarray(photo(64, 48)), "JPEG", exif=sideways)
    assert "index 0 is 8x8, and the image 48x64" in refusal(file("images", stored), mask())
    assert "index 1 is 4x8, and the image 8x8" in refusal(PICTURE, PICTURE, mask(), mask(np.ones((8, 4), bool)))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([mask(), mask()], "2 masks for 3 images; send one for all images, or one for each"),
        ([mask()] * 4, "4 masks for 3 images"),
        ([mask()] * 17, "send one mask for all images, or one for each"),
        ([mask(), text("fit", "free"), text("size", "64x64")], "fit=free recomposes the picture"),
        ([file("mask", b"hello")], "mask: Invalid image format at index 0: not a JPEG, PNG"),
        ([mask(), mask(), file("mask", mask_png(LEFT)[:45])], "mask: Invalid image format at index 2"),
        ([mask(np.zeros((8, 8), bool))], "the mask at index 0 has nothing to edit"),
        ([mask(), mask(), mask(np.zeros((8, 8), bool))], "the mask at index 2 has nothing to edit"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_by_name(parts: list[Part], words: str) -> None:
    assert words in refusal(*[picture()] * 3, *parts)


def test_a_wrong_number_of_masks_and_fit_free_are_refused_before_any_picture_is_decoded() -> None:
    broken = file("images", half_a_jpeg())
    whole = mask(np.ones((64, 64), bool))
    assert "2 masks for 1 images" in refusal(broken, whole, whole)
    assert "fit=free" in refusal(broken, whole, text("fit", "free"), text("size", "64x64"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!", "mask: Invalid image format at index 0: neither base64"),
        ("", "mask: Invalid image format at index 0: the file is empty"),
        ("https://example.com/mask.png", "no URL is fetched"),
        ({"file_id": "file-1"}, "mask must be base64 text, or a list of them, not an object"),
        ([None, b64(mask_png(LEFT))], "mask must be base64 text, or a list of them, not null"),
        ([[b64(mask_png(LEFT))]], "mask must be base64 text, or a list of them, not a list"),
        ([b64(mask_png(LEFT))] * 3, "3 masks for 2 images"),
    ],
)
def test_json_that_is_no_mask_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        form_of_json(images=[b64(png(1, 8, 8))] * 2, mask=value)
    assert caught.value.param == "mask"
    assert words in caught.value.message


def test_a_mask_that_is_a_text_is_refused_at_its_first_byte() -> None:
    body, content_type = body_of([text("mask", b"x" * MIB), PROMPT, PICTURE])
    upload = Upload([body[i : i + 500] for i in range(0, len(body), 500)], content_type)
    with pytest.raises(InvalidInput, match="mask must be a file, not text"):
        upload.parse()
    assert upload.taken_bytes <= 1000


def test_a_mask_counts_as_any_picture_against_the_limits() -> None:
    small = AppSettings(limits=LimitSettings(max_file_bytes=1000))
    for large in (file("mask", b"x" * 2000), file("mask[]", b"x" * 2000)):
        with pytest.raises(PayloadTooLarge, match="Mask at index 0 is larger than 1000 bytes") as caught:
            form_of(PROMPT, PICTURE, large, settings=small)
        assert caught.value.param == large[0]
    assert "mask: Image at index 0 is too long" in refusal(PICTURE, file("mask", png(0, 90, 10)))


# --- transparency -------------------------------------------------------------------------------------------------


def test_a_picture_keeps_its_transparency_unless_it_should_be_opaque() -> None:
    pixels = see_through()
    one = file("images", png_of(pixels))
    for background in ([], [text("background", "auto")], [text("background", "")]):
        np.testing.assert_array_equal(form_of(PROMPT, one, *background).request.images[0], pixels)
    opaque = form_of(PROMPT, one, text("background", "opaque")).request.images[0]
    assert opaque.shape == (8, 8, 3)
    # Black below a transparent pixel is white.
    clear = np.zeros((8, 8, 4), np.uint8)
    laid = form_of(PROMPT, file("images", png_of(clear)), text("background", "opaque")).request.images[0]
    assert (laid == 255).all()


def test_an_opaque_picture_has_no_transparency_whatever_its_file_has() -> None:
    pixels = see_through()
    pixels[:, :, 3] = 255
    np.testing.assert_array_equal(form_of(PROMPT, file("images", png_of(pixels))).request.images[0], pixels[:, :, :3])


def test_a_reference_is_laid_on_white() -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    form = form_of(PROMPT, PICTURE, file("references", png_of(clear)))
    [[reference]] = form.request.references_by_image
    assert (reference == 255).all()
    assert reference.shape == (8, 8, 3)
