"""The data of the training recipe, on procedural scenes and the held-out photographs: nothing is downloaded."""

import io

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest

from training.data import example, picture
from training.instructions import IDENTITY, INSTRUCTIONS
from training.photos import PHOTOS, evaluation_pictures, held_out, load
from training.scenes import scene, texture

SIZE = (128, 128)
PICTURES = 20
USERS_PROMPTS = (
    "make the sky blue",
    "enhance colors",
    "artistic style transformation",
    "make the scene brighter and more vivid",
)


@pytest.fixture(scope="module")
def photographs():
    return evaluation_pictures(SIZE, PICTURES)


@pytest.fixture(scope="module")
def landscapes():
    return evaluation_pictures(SIZE, PICTURES, sky=True)


def as_jpeg(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=30)
    return np.asarray(PIL.Image.open(file))


def softened(pixels):
    return np.asarray(PIL.Image.fromarray(pixels).filter(PIL.ImageFilter.GaussianBlur(0.8)))


def test_wordings_are_unique_and_in_both_languages():
    wordings = [wording for instruction in INSTRUCTIONS for wording in instruction.wordings]
    assert len({wording.casefold().strip() for wording in wordings}) == len(wordings)
    assert all(wording.strip() for wording in wordings)
    for instruction in INSTRUCTIONS:
        english = sum(wording.isascii() for wording in instruction.wordings)
        assert english >= 3, instruction.name
        assert len(instruction.wordings) - english >= 2, instruction.name


@pytest.mark.parametrize("prompt", USERS_PROMPTS)
def test_the_users_prompts_are_known(prompt):
    assert any(prompt in instruction.wordings for instruction in INSTRUCTIONS if instruction is not IDENTITY)


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda instruction: instruction.name)
def test_a_true_edit_is_confirmed_and_an_untouched_picture_is_not(instruction, photographs, landscapes):
    true, untouched, as_restored, softened_only = [], [], [], []
    for index, held in enumerate(landscapes if instruction.needs_sky else photographs):
        result = instruction.apply(held.pixels, held.sky_mask, np.random.default_rng(index))
        true.append(instruction.confirm(held.pixels, result))
        untouched.append(instruction.confirm(held.pixels, held.pixels))
        as_restored += [instruction.confirm(held.pixels, change(result)) for change in (as_jpeg, softened)]
        softened_only.append(instruction.confirm(held.pixels, softened(held.pixels)))
    shares = [float(np.mean(values)) for values in (true, untouched, as_restored, softened_only)]
    # Shown by `pytest -s`.
    print("{}: true {:.0%}, untouched {:.0%}, restored {:.0%}, softened {:.0%}".format(instruction.name, *shares))  # noqa: T201
    unchanged = 1.0 if instruction is IDENTITY else 0.0
    assert shares[0] >= 0.99
    assert shares[1] == unchanged
    assert shares[2] >= 0.9
    assert shares[3] == unchanged


@pytest.mark.parametrize("instruction", [i for i in INSTRUCTIONS if i.needs_sky], ids=lambda i: i.name)
def test_only_the_sky_is_repainted(instruction, landscapes):
    for held in landscapes:
        result = instruction.apply(held.pixels, held.sky_mask, np.random.default_rng(0))
        assert np.array_equal(result[~held.sky_mask], held.pixels[~held.sky_mask])
        assert np.abs(result[held.sky_mask].astype(int) - held.pixels[held.sky_mask]).mean() > 10
    with pytest.raises(ValueError, match="sky mask"):
        instruction.apply(landscapes[0].pixels, None, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["sepia", "brighter", "vivid", "red", "artistic", "vignette", "orange-sky"])
def test_variants_differ_where_the_instruction_leaves_room(name, landscapes):
    [instruction] = [each for each in INSTRUCTIONS if each.name == name]
    held = landscapes[0]
    one, other = (instruction.apply(held.pixels, held.sky_mask, np.random.default_rng(seed)) for seed in (1, 5))
    assert np.abs(one.astype(int) - other).mean() > 0.5


@pytest.mark.parametrize("size", [(128, 128), (112, 144), (48, 64)])
def test_scenes_have_sky_above_and_land_below(size):
    for seed in range(20):
        made = scene(np.random.default_rng(seed), size)
        assert made.pixels.shape == (*size, 3)
        assert made.pixels.dtype == np.uint8
        assert made.sky_mask.shape == size
        assert 0.1 < made.sky_mask.mean() < 0.9
        assert made.sky_mask[0].mean() > 0.5
        assert not made.sky_mask[-1].any()
        assert made.pixels.std() > 3
        assert texture(np.random.default_rng(seed), size).shape == (*size, 3)


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_examples_follow_from_the_seed(size):
    photos = list(held_out().values())  # as stand-ins, which training never uses
    names = set()
    for seed in range(30):
        one, other = (example(np.random.default_rng(seed), photos, size) for _ in range(2))
        names.add(one.instruction.name)
        assert one.prompt == other.prompt
        assert one.prompt.strip()
        for pixels, again in ((one.source, other.source), (one.target, other.target)):
            assert pixels.shape == (*size, 3)
            assert pixels.dtype == np.uint8
            assert np.array_equal(pixels, again)
        seen, again = (picture(np.random.default_rng(seed), photos, size) for _ in range(2))
        assert np.array_equal(seen, again)
    assert len(names) > 10


def test_examples_need_no_photographs():
    assert example(np.random.default_rng(0), [], SIZE).source.shape == (*SIZE, 3)


@pytest.mark.parametrize("sky", [False, True])
def test_evaluation_pictures_are_different_and_stay_the_same(sky):
    one, other = (evaluation_pictures((64, 96), PICTURES, sky=sky) for _ in range(2))
    assert len({held.name for held in one}) == len({held.pixels.tobytes() for held in one}) == PICTURES
    for held, again in zip(one, other, strict=True):
        assert held.pixels.shape == (64, 96, 3)
        assert (held.sky_mask is not None) == sky
        assert np.array_equal(held.pixels, again.pixels)


def test_every_photograph_has_an_author_a_licence_and_a_name_of_its_own():
    assert len({photo.name for photo in PHOTOS}) == len(PHOTOS)
    assert all(photo.author and photo.licence for photo in PHOTOS)


def test_loading_says_what_to_run_where_there_are_no_photographs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.photos"):
        load(tmp_path)


def test_loading_reads_photographs_by_name(tmp_path):
    for name, value in (("b", 200), ("a", 100)):
        PIL.Image.new("RGB", (20, 10), (value, value, value)).save(tmp_path / f"{name}.jpg")
    assert [int(photo[0, 0, 0]) for photo in load(tmp_path)] == [100, 200]
