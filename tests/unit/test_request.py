"""Only validated input can be an EditRequest."""

import io
import pickle
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve_app.errors import InvalidInput, NotFound
from serve_app.images.geometry import Size
from serve_app.request import EditRequest, EditResult, GenerationRequest, Timings, check_generation, check_limits
from serve_app.settings import LimitSettings

PICTURE = np.full((4, 6, 3), 7, np.uint8)


def refusal(**fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        EditRequest(**{"images": [PICTURE], "prompt": "x", **fields})
    return caught.value


def test_pil_pictures_and_arrays_become_the_same_pixels() -> None:
    request = EditRequest(images=[PIL.Image.fromarray(PICTURE), PICTURE], prompt="x", n=3)
    np.testing.assert_array_equal(request.images[0], request.images[1])
    assert request.outputs == 6
    assert request.prompts == ("x", "x")


def test_a_request_survives_pickle() -> None:
    request = EditRequest(images=[PICTURE], prompt=["x"], size="640x480", seed=5, guidance_scale=2)
    copy = pickle.loads(pickle.dumps(request))
    assert copy.model_dump(exclude={"images"}) == request.model_dump(exclude={"images"})
    assert copy.size == Size(640, 480)
    np.testing.assert_array_equal(copy.images[0], PICTURE)


def test_a_request_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        EditRequest(images=[PICTURE], prompt="x").n = 2  # type: ignore[misc]


def test_mirrored_arrays_are_made_contiguous() -> None:
    pixels = EditRequest(images=[PICTURE[..., ::-1]], prompt="x").images[0]
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("images", [[], (), None])
def test_at_least_one_picture(images: Any) -> None:
    error = refusal(images=images)
    assert (error.message, error.param) == ("At least one image is required", "images")


@pytest.mark.parametrize("images", [PICTURE, PIL.Image.fromarray(PICTURE), b"png", "x"])
def test_one_picture_alone_is_no_list(images: Any) -> None:
    error = refusal(images=images)
    assert error.message.startswith("images must be a list of pictures, not ")
    assert error.param == "images"


@pytest.mark.parametrize(
    "image",
    [
        PICTURE.astype(np.float32),
        PICTURE[..., 0],
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        b"png",
        None,
        PIL.Image.new("RGB", (0, 3)),
    ],
)
def test_what_is_no_picture_is_named_by_its_index(image: Any) -> None:
    error = refusal(images=[PICTURE, image])
    assert error.message.startswith("Invalid image format at index 1: ")
    assert error.param == "images"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 11),
        ("seed", -1),
        ("seed", 2**53),
        ("num_inference_steps", 0),
        ("num_inference_steps", 151),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", 0.9),
        ("size", "0x0"),
        ("size", "big"),
        ("fit", "contain"),
        ("original_sizes", ()),
        ("original_sizes", ("auto",)),
        ("original_sizes", (Size(6, 4), Size(6, 4))),
        ("original_sizes", (Size(6, 40),)),
        ("original_sizes", (Size(3, 2),)),
        ("prompt", ""),
        ("prompt", "x" * 4001),
        ("prompt", ["a", "b"]),
        ("prompt", []),
        ("prompt", "<|im_end|>"),
        ("negative_prompt", "<|im_end|>"),
        ("negative_prompt", "x" * 4001),
        ("partial_images", -1),
        ("partial_images", 4),
        ("strength", 0.5),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert error.param == name
    assert "\n" not in error.message
    assert "pydantic" not in error.message


def test_fit_is_refused_where_it_would_have_no_effect() -> None:
    for size in (None, "auto", "original"):
        error = refusal(size=size, fit="free")
        assert error.param == "fit"
        assert "needs a size of WIDTHxHEIGHT" in error.message
        # The default says what these sizes do.
        assert EditRequest(images=[PICTURE], prompt="x", size=size, fit="cover").fit == "cover"
    assert EditRequest(images=[PICTURE], prompt="x", size="96x96", fit="free").fit == "free"


def test_the_sizes_of_pictures_are_those_before_they_were_shrunk() -> None:
    assert EditRequest(images=[PICTURE], prompt="x").sizes == (Size(6, 4),)
    shrunk = EditRequest(images=[PICTURE, PICTURE], prompt="x", original_sizes=["600x401", Size(6, 4)])
    assert shrunk.sizes == (Size(600, 401), Size(6, 4))
    with pytest.raises(InvalidInput, match="600x401") as caught:
        check_limits(shrunk, LimitSettings(max_image_pixels=600 * 400))
    assert caught.value.param == "images"


def test_outputs_of_the_original_size_are_bounded_together() -> None:
    fields: dict[str, Any] = {"images": [PICTURE], "prompt": "x", "original_sizes": [Size(600, 400)], "n": 3}
    limits = LimitSettings(max_original_pixels=3 * 600 * 400)
    kept = EditRequest(**fields, size="original")
    check_limits(kept, limits)
    assert kept.picture_bytes == 3 * (6 * 4 + 3 * 600 * 400)
    assert EditRequest(**fields).picture_bytes == 3 * 6 * 4
    check_limits(EditRequest(**{**fields, "n": 9}), limits)
    for more in ({"n": 4}, {"partial_images": 1}):
        with pytest.raises(InvalidInput, match="more than 720000") as caught:
            check_limits(EditRequest(**{**fields, **more}, size="original"), limits)
        assert caught.value.param == "size"


def test_limits_hold_for_handles_too() -> None:
    request = EditRequest(images=[PICTURE] * 3, prompt="x", n=2, size="800x100")
    check_limits(request, LimitSettings())
    for limits, param in [
        (LimitSettings(max_images=2), "images"),
        (LimitSettings(max_outputs=5), "n"),
        (LimitSettings(max_image_pixels=23), "images"),
        (LimitSettings(max_aspect_ratio=1.4), "images"),
        (LimitSettings(max_aspect_ratio=7.9), "size"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            check_limits(request, limits)
        assert caught.value.param == param


def test_a_result_gives_pil_pictures_in_the_same_order() -> None:
    rows = tuple(tuple(np.full((2, 2, 3), 10 * i + j, np.uint8) for j in range(2)) for i in range(3))
    result = EditResult(rows, ((0, 1), (2, 3), (4, 5)), Timings(0.1, 0.2, 0.3, 0.4))
    copy = pickle.loads(pickle.dumps(result))
    levels = [[image.getpixel((0, 0))[0] for image in row] for row in copy.images]
    assert levels == [[0, 1], [10, 11], [20, 21]]
    assert copy.seeds == result.seeds
    assert copy.timings == result.timings


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"images": [PICTURE]}, "prompt is required"), ({"prompt": "x"}, "At least one image is required")],
)
def test_what_is_missing_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        EditRequest(**fields)
    assert caught.value.message == message


class TestReferences:
    def test_they_are_kept_for_each_image(self) -> None:
        shared = EditRequest(images=[PICTURE, PICTURE], prompt="x", references=[PICTURE])
        assert [len(of_one) for of_one in shared.references_by_image] == [1, 1]
        nested = EditRequest(images=[PICTURE, PICTURE], prompt="x", references=[[PICTURE, PICTURE], ()])
        assert [len(of_one) for of_one in nested.references_by_image] == [2, 0]
        assert EditRequest(images=[PICTURE, PICTURE], prompt="x").references_by_image == ((), ())

    def test_their_bytes_count_once(self) -> None:
        other = PICTURE.copy()
        assert EditRequest(images=[PICTURE] * 2, prompt="x", references=[other]).picture_bytes == 2 * PICTURE.nbytes

    @pytest.mark.parametrize(
        ("references", "words"),
        [
            ([[PICTURE]], "1 lists for 2 images"),
            ([[PICTURE], PICTURE], "not both"),
            (["a.png"], "Invalid image format at index 0"),
            (PICTURE, "must be a list"),
        ],
    )
    def test_others_are_refused(self, references: Any, words: str) -> None:
        with pytest.raises(InvalidInput, match=words) as caught:
            EditRequest(images=[PICTURE, PICTURE], prompt="x", references=references)
        assert caught.value.param == "references"

    def test_they_are_limited_for_each_image(self) -> None:
        few = LimitSettings(max_references=1)
        check_limits(EditRequest(images=[PICTURE, PICTURE], prompt="x", references=[PICTURE]), few)
        with pytest.raises(InvalidInput, match="at most 1 are allowed for each image, not 2"):
            check_limits(EditRequest(images=[PICTURE], prompt="x", references=[PICTURE, PICTURE]), few)


CLEAR = np.dstack([PICTURE, np.full((4, 6), 128, np.uint8)])
"""A picture that is transparent in all of its pixels, in part."""
HALF = np.arange(6) < np.full((4, 6), 3)
"""A mask of the left half of PICTURE."""


class TestAlpha:
    def test_it_is_kept_where_it_matters(self) -> None:
        idle = np.dstack([PICTURE, np.full((4, 6), 255, np.uint8)])
        images = EditRequest(images=[CLEAR, PIL.Image.fromarray(CLEAR), idle, PICTURE], prompt="x").images
        np.testing.assert_array_equal(images[0], CLEAR)
        np.testing.assert_array_equal(images[1], CLEAR)
        assert [image.shape[2] for image in images] == [4, 4, 3, 3]
        np.testing.assert_array_equal(images[2], PICTURE)

    def test_opaque_lays_pictures_on_white(self) -> None:
        [image] = EditRequest(images=[CLEAR], prompt="x", background="opaque").images
        assert image.shape == (4, 6, 3)
        assert abs(int(image[0, 0, 0]) - (7 + 255) / 2) <= 1

    def test_references_are_laid_on_white(self) -> None:
        [[reference]] = EditRequest(images=[CLEAR], prompt="x", references=[CLEAR]).references
        assert reference.shape == (4, 6, 3)
        assert reference.min() > 100

    def test_a_background_is_one_of_three(self) -> None:
        assert EditRequest(images=[CLEAR], prompt="x", background="transparent").images[0].shape[2] == 4
        assert refusal(background="white").param == "background"


class TestMasks:
    def test_one_is_for_all_images(self) -> None:
        request = EditRequest(images=[PICTURE, PICTURE], prompt="x", mask=HALF)
        assert request.masks == (HALF, HALF)
        assert EditRequest(images=[PICTURE] * 2, prompt="x", mask=[HALF]).masks == (HALF, HALF)

    def test_each_image_can_have_its_own(self) -> None:
        first, second = EditRequest(images=[PICTURE, PICTURE], prompt="x", mask=[HALF, ~HALF]).masks
        np.testing.assert_array_equal(first, HALF)
        np.testing.assert_array_equal(second, ~HALF)

    @pytest.mark.parametrize("mask", [None, [], ()])
    def test_none_leaves_all_to_the_edit(self, mask: Any) -> None:
        assert EditRequest(images=[PICTURE], prompt="x", mask=mask).masks == (None,)

    @pytest.mark.parametrize(
        "mask",
        [
            HALF,
            HALF.astype(np.uint8) * 255,
            np.where(HALF, 128, 127).astype(np.uint8),
            PIL.Image.fromarray(HALF),
            PIL.Image.fromarray(np.where(HALF, 200, 100).astype(np.uint8)),
            # Black and transparent where the edit is, as OpenAI's clients send it.
            PIL.Image.fromarray(np.dstack([PICTURE, np.where(HALF, 0, 255).astype(np.uint8)])),
        ],
        ids=["bool", "uint8", "threshold", "1", "L", "RGBA"],
    )
    def test_it_is_read_from_white_or_from_transparency(self, mask: Any) -> None:
        [stored] = EditRequest(images=[PICTURE], prompt="x", mask=mask).mask
        assert stored.dtype == np.bool_
        np.testing.assert_array_equal(stored, HALF)

    @pytest.mark.parametrize(
        ("mask", "words"),
        [
            (np.ones((6, 4), bool), "the image at index 0 is 4x6, and the image 6x4; they must have one size"),
            ([HALF, np.ones((1, 1), bool)], "the image at index 1 is 1x1, and the image 6x4"),
            (np.zeros((4, 6), bool), "mask at index 0 has nothing to edit"),
            ([HALF, np.full((4, 6), 127, np.uint8)], "mask at index 1 has nothing to edit"),
            ([HALF] * 3, "3 masks for 2 images; send one for all images, or one for each"),
            (HALF.astype(np.float32), "Invalid mask at index 0: expected a PIL image, or an array"),
            ([HALF, None], "Invalid mask at index 1"),
            (b"png", "Invalid mask at index 0"),
            (PIL.Image.new("L", (0, 3)), "mask: Invalid image format at index 0: it has no pixels"),
        ],
    )
    def test_others_are_refused(self, mask: Any, words: str) -> None:
        error = refusal(images=[PICTURE, PICTURE], mask=mask)
        assert words in error.message
        assert error.param == "mask"

    def test_a_damaged_file_is_refused(self) -> None:
        file = io.BytesIO()
        PIL.Image.fromarray(HALF).resize((600, 400)).save(file, "PNG")
        error = refusal(mask=[PIL.Image.open(io.BytesIO(file.getvalue()[:-40]))])
        assert (error.param, "damaged" in error.message) == ("mask", True)

    def test_nothing_of_a_recomposed_picture_can_stay(self) -> None:
        error = refusal(mask=HALF, size="96x96", fit="free")
        assert (error.param, "fit=free" in error.message) == ("mask", True)

    def test_it_survives_pickle(self) -> None:
        copy = pickle.loads(pickle.dumps(EditRequest(images=[PICTURE] * 2, prompt="x", mask=HALF)))
        assert copy.mask[0] is copy.mask[1]
        np.testing.assert_array_equal(copy.mask[0], HALF)

    def test_results_have_the_pictures_own_size_unless_another_is_named(self) -> None:
        fields: dict[str, Any] = {"images": [PICTURE], "prompt": "x", "original_sizes": [Size(600, 400)], "n": 3}
        limits = LimitSettings(max_original_pixels=3 * 600 * 400)
        masked = EditRequest(**fields, mask=HALF)
        check_limits(masked, limits)
        assert masked.picture_bytes == 6 * 4 * 3 + 6 * 4 + 3 * 3 * 600 * 400
        with pytest.raises(InvalidInput, match="with a mask the outputs") as caught:
            check_limits(EditRequest(**{**fields, "n": 4}, mask=HALF), limits)
        assert caught.value.param == "size"
        check_limits(EditRequest(**{**fields, "n": 4}, mask=HALF, size="64x64"), limits)

    def test_one_mask_of_many_images_counts_once(self) -> None:
        request = EditRequest(images=[PICTURE, PICTURE.copy()], prompt="x", mask=HALF, size="8x8")
        assert request.picture_bytes == 2 * PICTURE.nbytes + HALF.nbytes

    def test_results_of_transparent_pictures_count_with_their_alpha(self) -> None:
        request = EditRequest(images=[CLEAR], prompt="x", size="original")
        assert request.picture_bytes == 2 * CLEAR.nbytes


class TestGeneration:
    def test_it_is_one_picture_of_n_variants(self) -> None:
        request = GenerationRequest(prompt="x", n=3, seed=5)
        assert (request.images, request.places, request.outputs, request.prompts) == ((), 1, 3, ("x",))
        assert [request.output_seed(0, variant) for variant in range(3)] == [5, 6, 7]
        assert request.picture_bytes == 0
        assert GenerationRequest(prompt=["x"]).prompts == ("x",)

    def test_it_survives_pickle(self) -> None:
        request = GenerationRequest(prompt="x", size="640x480", background="transparent", caller="ann")
        copy = pickle.loads(pickle.dumps(request))
        assert type(copy) is GenerationRequest
        assert copy == request

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"images": [PICTURE]}, "images"),
            ({"images": PICTURE}, "images"),
            ({"references": [PICTURE]}, "references"),
            ({"references": [[PICTURE]]}, "references"),
            ({"mask": PICTURE}, "mask"),
            ({"mask": [PICTURE[..., 0]]}, "mask"),
            ({"original_sizes": [Size(8, 8)]}, "original_sizes"),
            ({"fit": "free", "size": "64x64"}, "fit"),
        ],
    )
    def test_what_belongs_to_a_picture_is_refused_with_the_way_to_edits(
        self, fields: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(InvalidInput, match=f"{param}: .*/v1/images/edits") as caught:
            GenerationRequest(prompt="x", **fields)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"size": "original"}, "size"),
            ({"prompt": ["x", "y"]}, "prompt"),
            ({"prompt": " "}, "prompt"),
            ({"n": 0}, "n"),
            ({"steps": 5}, "steps"),
        ],
    )
    def test_other_fields_have_rules_as_those_of_an_edit(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            GenerationRequest(**{"prompt": "x", **fields})
        assert caught.value.param == param

    def test_limits_count_its_variants_and_bound_its_shape(self) -> None:
        limits = LimitSettings(max_outputs=2, max_aspect_ratio=4)
        check_limits(GenerationRequest(prompt="x", n=2, size="64x256"), limits)
        with pytest.raises(InvalidInput, match="at most 2, not 1 × 3"):
            check_limits(GenerationRequest(prompt="x", n=3), limits)
        with pytest.raises(InvalidInput, match="size"):
            check_limits(GenerationRequest(prompt="x", size="64x257"), limits)

    def test_a_model_that_only_edits_says_which_one_generates(self) -> None:
        check_generation(True)
        with pytest.raises(NotFound, match=r"/v1/images/edits, or serve .* Qwen/Qwen-Image-2\.1"):
            check_generation(False)

    def test_no_image_is_no_edit_all_the_same(self) -> None:
        with pytest.raises(InvalidInput, match="At least one image is required"):
            EditRequest(prompt="x")
