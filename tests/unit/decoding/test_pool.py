"""Pictures decoded in separate processes: the same pixels, and a hostile file costs one process only."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest

from serve_app.decoding.files import decode
from serve_app.decoding.pool import DecoderPool
from serve_app.decoding.worker import memory_file
from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size
from serve_app.images.pixels import lay_on_white
from serve_app.request import Picture
from serve_app.settings import LimitSettings
from tests.pictures import file_of, mask_png, one_bit_png, photo
from tests.processes import decoder_processes, is_alive
from tests.waiting import wait_until

LIMITS = LimitSettings()
PNG = file_of(PIL.Image.fromarray(photo()), "PNG")
# A good part of a second to decode.
LARGE = one_bit_png(6000, 6000)


Started = Callable[[], set[psutil.Process]]


@pytest.fixture
def started() -> Started:
    """Return the decoder processes that this test has started."""
    before = decoder_processes()
    return lambda: decoder_processes() - before


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    decoders = DecoderPool()
    yield decoders
    decoders.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[DecoderPool]:
    """Yield the decoders of tests that end no process, each of which takes a third of a second to start."""
    decoders = DecoderPool()
    yield decoders
    decoders.close()


def refusal(decoders: DecoderPool, data: bytes, index: int = 0, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(InvalidInput) as caught:
        decoders.decode(data, index, limits)
    assert caught.value.param == "images"
    return caught.value.message


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "BMP", "PPM"])
def test_pixels_are_the_same_as_in_one_process(shared: DecoderPool, file_format: str) -> None:
    data = file_of(PIL.Image.fromarray(photo()), file_format)
    pixels = shared.decode(data, 0, LIMITS).pixels
    np.testing.assert_array_equal(pixels, decode(data, 0, LIMITS).pixels)
    assert pixels.flags.writeable
    assert shared.measure(data, 0, LIMITS) == Size(64, 48)


def see_through() -> Picture:
    """Return the photo with an alpha channel of all values, and noise where it is transparent."""
    alpha = np.arange(64 * 48, dtype=np.uint32).astype(np.uint8).reshape(48, 64)
    return np.dstack([photo(), alpha])


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_come_with_their_alpha_where_it_is_asked_for(
    decoders: DecoderPool, file_format: str
) -> None:
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = file_of(PIL.Image.fromarray(see_through()), file_format, **options)
    np.testing.assert_array_equal(decoders.decode(data, 0, LIMITS, keep_alpha=True).pixels, see_through())
    opaque = decoders.decode(data, 0, LIMITS).pixels
    np.testing.assert_array_equal(opaque, lay_on_white(see_through()))
    np.testing.assert_array_equal(decoders.decode(PNG, 0, LIMITS, keep_alpha=True).pixels, photo())


def test_a_picture_comes_whole_where_it_is_asked_for(decoders: DecoderPool) -> None:
    small = LimitSettings(shrink_above_pixels=2**16)
    data = file_of(PIL.Image.fromarray(photo(400, 300)), "PNG")
    np.testing.assert_array_equal(decoders.decode(data, 0, small, shrink=False).pixels, photo(400, 300))
    assert decoders.decode(data, 0, small).pixels.shape[0] < 300


def test_a_mask_comes_whole_as_what_may_change(decoders: DecoderPool) -> None:
    small = LimitSettings(shrink_above_pixels=2**16)
    changes = np.random.default_rng(0).integers(0, 2, (300, 400), np.uint8).astype(bool)
    mask = decoders.decode_mask(mask_png(changes), 0, small)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, changes)
    faint = file_of(PIL.Image.fromarray(see_through()), "PNG")
    np.testing.assert_array_equal(decoders.decode_mask(faint, 0, small), see_through()[:, :, 3] < 128)
    with pytest.raises(InvalidInput, match="index 2: not a JPEG"):
        decoders.decode_mask(b"hello", 2, small)


class Liar(DecoderPool):
    """A pool whose processes answer with two black pixels, and with whatever is `said` about them."""

    said: dict[str, Any]

    def _call(self, *_: Any, **__: Any) -> Any:
        return self.said, [memory_file(bytes(6))]


def test_what_a_decoder_process_says_is_not_trusted() -> None:
    liar = Liar()
    for channels in (2, 3, 4, 10**9):
        liar.said = {"size": [2, 1], "sent_size": [2, 1], "channels": channels}
        assert liar.decode(b"", 0, LIMITS).pixels.shape == (1, 2, 3)
    liar.said = {"size": [10**6, 10**6], "sent_size": [3, 1], "channels": 3}
    for shrink in (False, True):
        with pytest.raises(RuntimeError, match="fewer bytes"):
            liar.decode(b"", 0, LIMITS, shrink=shrink)
    liar.said["sent_size"] = liar.said["size"]
    for decode_any in (liar.decode, liar.decode_mask):
        with pytest.raises(InvalidInput, match="too large"):
            decode_any(b"", 0, LIMITS)


@pytest.mark.parametrize("data", [b"", b"text", PNG[:100], one_bit_png(15_000, 15_000)])
def test_a_refusal_has_the_same_words(shared: DecoderPool, data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(data, 3, LIMITS)
    assert refusal(shared, data, 3) == caught.value.message


def test_one_process_serves_one_caller_after_the_other(decoders: DecoderPool, started: Started) -> None:
    for _ in range(3):
        decoders.decode(PNG, 0, LIMITS)
        refusal(decoders, b"text")
    assert len(started()) == 1


def test_what_takes_too_long_is_refused_and_its_process_ends(decoders: DecoderPool, started: Started) -> None:
    decoders.warm()
    [process] = started()
    said = refusal(decoders, LARGE, 2, LimitSettings(decode_timeout_s=0.02))
    assert said == "Invalid image format at index 2: it takes longer than 0.02 s to decode"
    assert not is_alive(process)
    assert decoders.decode(PNG, 0, LIMITS).pixels.shape == (48, 64, 3)


def test_a_large_jpeg_is_never_in_memory_as_a_whole(decoders: DecoderPool) -> None:
    # 144 MB as a whole.
    data = file_of(PIL.Image.new("RGB", (6000, 6000)), "JPEG")
    picture = decoders.decode(data, 0, LimitSettings(max_decoder_bytes=128 * 2**20))
    assert picture.sent_size == Size(6000, 6000)


def test_what_takes_too_much_memory_is_refused(decoders: DecoderPool) -> None:
    small = LimitSettings(max_decoder_bytes=2**26)
    assert refusal(decoders, LARGE, 1, small).endswith("there is not enough memory to decode it")
    assert decoders.decode(PNG, 0, small).pixels.shape == (48, 64, 3)
    assert decoders.decode(LARGE, 0, LIMITS).sent_size == Size(6000, 6000)


def test_a_process_that_dies_fails_its_own_picture_only(decoders: DecoderPool, started: Started) -> None:
    decoders.warm()
    [other] = started()
    decoders.warm()
    [victim] = started() - {other}
    # The last process is used first: it takes the picture, and dies before it answers.
    victim.suspend()
    threading.Timer(2, victim.kill).start()
    assert refusal(decoders, PNG, 1) == "Invalid image format at index 1: the file is damaged or incomplete"
    assert decoders.decode(PNG, 0, LIMITS).pixels.shape == (48, 64, 3)
    assert started() == {other}


def test_a_process_that_died_while_idle_is_no_pictures_fault(decoders: DecoderPool, started: Started) -> None:
    decoders.warm()
    [victim] = started()
    victim.kill()
    victim.wait(60)
    assert decoders.decode(PNG, 0, LIMITS).pixels.shape == (48, 64, 3)


def test_a_jpeg_with_thousands_of_scans_is_refused(shared: DecoderPool) -> None:
    data = file_of(PIL.Image.fromarray(photo()), "JPEG", progressive=True)
    head, last_scan = data.rsplit(b"\xff\xda", 1)
    assert shared.decode(data, 0, LIMITS).pixels.shape == (48, 64, 3)
    bomb = head + (b"\xff\xda" + last_scan.removesuffix(b"\xff\xd9")) * 3000 + b"\xff\xd9"
    assert refusal(shared, bomb).endswith("it has more than 100 scans")


def test_a_decoder_has_no_secrets(decoders: DecoderPool, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_EDITS_API_KEYS", "a-secret")
    decoders.warm()
    [process] = started()
    assert "a-secret" not in "".join(process.environ().values())


def test_no_descriptor_is_left_open(decoders: DecoderPool) -> None:
    decoders.decode(PNG, 0, LIMITS)
    before = len(os.listdir("/proc/self/fd"))
    for data in (PNG, b"text"):
        for _ in range(5):
            try:
                decoders.decode(data, 0, LIMITS)
            except InvalidInput:
                assert data == b"text"
    refusal(decoders, LARGE, 0, LimitSettings(decode_timeout_s=0.02))
    decoders.decode(PNG, 0, LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_decoders_end_with_the_process_that_uses_them() -> None:
    script = (
        "import time\n"
        "from serve_app.decoding.pool import DECODERS\n"
        "DECODERS.warm(); DECODERS.warm(); print('ready', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        processes = decoder_processes(user.pid)
        assert len(processes) == 2
        user.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(process) for process in processes), "both end")
