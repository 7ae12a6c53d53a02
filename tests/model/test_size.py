"""`size` and `fit` with the built-in model: what it leaves as it is stays in its place, without a frame."""

from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from numpy.typing import NDArray

from serve_app.engine.engine import EditEngine
from serve_app.engine.requests import RunOptions
from serve_app.events import Event, Preview
from serve_app.images.geometry import Size
from serve_app.models import loading
from serve_app.request import EditRequest, Pixels
from serve_app.settings import ModelSettings
from tests.engines import calibrated_engine, outcome
from training.photos import evaluation_pictures

LANCZOS = PIL.Image.Resampling.LANCZOS
PHOTOS = {
    (width, height): evaluation_pictures((height, width), 4)
    for width, height in ((128, 128), (160, 96), (96, 160), (300, 200), (333, 217))
}
# Multiples of the model's 8 pixels and others; smaller and larger than the native area; of the picture's aspect ratio
# and of others.
SIZES = [
    ((128, 128), "192x192"),
    ((128, 128), "96x96"),
    ((128, 128), "256x256"),
    ((128, 128), "100x75"),
    ((128, 128), "240x60"),
    ((128, 128), "131x127"),
    ((160, 96), "128x128"),
    ((160, 96), "48x48"),
    ((96, 160), "200x120"),
    ((96, 160), "33x47"),
    ((300, 200), "75x100"),
    ((300, 200), "64x150"),
]


@pytest.fixture(scope="module")
def running() -> Iterator[EditEngine]:
    with calibrated_engine(loading.load(ModelSettings()).pipeline) as engine:
        yield engine


def unchanged(picture: Pixels, **fields: object) -> EditRequest:
    prompt = "leave it as it is"
    return EditRequest(
        **{"images": [picture], "prompt": prompt, "seed": 1, "num_inference_steps": 5, "guidance_scale": 1.0, **fields}
    )


def edit(running: EditEngine, request: EditRequest) -> Pixels:
    [answer] = map(outcome, running.submit([request]))
    assert isinstance(answer, np.ndarray)
    return answer


def motion(one: Pixels, other: Pixels) -> float:
    """Return by how many pixels the second picture is shifted, in all or in any quarter, by phase correlation."""
    rows, columns = one.shape[0] // 2, one.shape[1] // 2
    quarters = [(tall, wide) for tall in (np.s_[:rows], np.s_[rows:]) for wide in (np.s_[:columns], np.s_[columns:])]
    parts = [(np.s_[:], np.s_[:]), *quarters]
    return max(_shift(one[part].mean(axis=2), other[part].mean(axis=2)) for part in parts)


def _shift(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    window = np.outer(*map(np.hanning, one.shape))
    first, second = (np.fft.fft2((part - part.mean()) * window) for part in (one, other))
    product = first * np.conj(second)
    correlation = np.fft.ifft2(product / (np.abs(product) + 1e-9)).real
    peak = tuple(map(int, np.unravel_index(correlation.argmax(), correlation.shape)))
    return max(abs(_signed(correlation, peak, axis)) for axis in (0, 1))


def _signed(correlation: NDArray[np.float64], peak: tuple[int, ...], axis: int) -> float:
    """Return the place of the peak on one axis, between pixels by a parabola through its neighbours."""
    length = correlation.shape[axis]
    before, top, after = (np.roll(correlation, -offset, axis)[peak] for offset in (-1, 0, 1))
    place = peak[axis] + (before - after) / (2 * (before - 2 * top + after))
    return float(place - length if place > length / 2 else place)


def error(result: Pixels, wanted: Pixels) -> NDArray[np.float64]:
    """Return the mean error of every pixel, of 255."""
    difference: NDArray[np.float64] = np.abs(result.astype(float) - wanted).mean(axis=2)
    return difference


def frame(result: Pixels, wanted: Pixels) -> float:
    """Return by how much the error of a sixteenth along the border exceeds that of the middle, of 255."""
    errors = error(result, wanted)
    border = np.ones(errors.shape, bool)
    width = max(2, min(errors.shape) // 16)
    border[width:-width, width:-width] = False
    return float(errors[border].mean() - errors[~border].mean())


def assert_unchanged(result: Pixels, wanted: Pixels) -> None:
    assert result.shape == wanted.shape
    assert motion(result, wanted) <= 1
    assert frame(result, wanted) < 5
    assert error(result, wanted).mean() < 15


@pytest.mark.parametrize(("of", "size"), SIZES)
def test_what_is_left_as_it_is_stays_in_its_place_without_a_frame(
    running: EditEngine, of: tuple[int, int], size: str
) -> None:
    picture = PHOTOS[of][SIZES.index((of, size)) % 4].pixels
    result = edit(running, unchanged(picture, size=size))
    # Pillow's own crop around the centre.
    width, height = map(int, size.split("x"))
    wanted = PIL.ImageOps.fit(PIL.Image.fromarray(picture), (width, height), LANCZOS)
    assert_unchanged(result, np.asarray(wanted))


def test_the_original_size_is_exactly_the_pictures_own(running: EditEngine) -> None:
    picture = PHOTOS[333, 217][0].pixels
    assert_unchanged(edit(running, unchanged(picture, size="original")), picture)
    # Halved, as by a decoder, with odd sides rounded up.
    half = np.asarray(PIL.Image.fromarray(picture).resize((167, 109), LANCZOS))
    result = edit(running, unchanged(half, original_sizes=[Size(333, 217)], size="original"))
    assert_unchanged(result, picture)


def test_auto_shows_all_of_the_picture(running: EditEngine) -> None:
    picture = PHOTOS[300, 200][0].pixels
    result = edit(running, unchanged(picture))
    assert_unchanged(result, np.asarray(PIL.Image.fromarray(picture).resize(result.shape[1::-1], LANCZOS)))


@pytest.mark.parametrize("size", ["1x1", "8x8", "8x64", "512x64"])
def test_any_accepted_size_is_made(running: EditEngine, size: str) -> None:
    result = edit(running, unchanged(PHOTOS[300, 200][0].pixels, size=size, num_inference_steps=1))
    assert f"{result.shape[1]}x{result.shape[0]}" == size


def test_a_preview_lies_on_its_output(running: EditEngine) -> None:
    events: list[Event] = []
    request = unchanged(PHOTOS[333, 217][0].pixels, size="original", partial_images=1)
    [output] = map(outcome, running.submit([request], [RunOptions(events.append)]))
    assert isinstance(output, np.ndarray)
    [preview] = [event.pixels for event in events if isinstance(event, Preview)]
    assert_unchanged(preview, output)
