"""The suffixes of picture files, compared with the formats that the decoder reads."""

import io

import numpy as np
import PIL.Image
import pytest

from serve_app.decoding.files import decode
from serve_app.decoding.suffixes import READ_SUFFIXES
from serve_app.errors import InvalidInput
from serve_app.settings import LimitSettings


def _is_read(file_format: str) -> bool | None:
    """Return whether the decoder reads a file of that format, or None if Pillow cannot make one."""
    file = io.BytesIO()
    try:
        PIL.Image.new("RGB", (32, 32), (200, 100, 50)).save(file, file_format)
    except (KeyError, OSError, ValueError):
        return None
    try:
        pixels = decode(file.getvalue(), 0, LimitSettings()).pixels
    except InvalidInput:
        return False
    assert np.ptp(pixels, axis=(0, 1)).max() <= 8
    return True


@pytest.mark.filterwarnings("ignore:IM image format is deprecated:DeprecationWarning")
def test_the_suffixes_are_those_of_the_formats_that_are_read() -> None:
    PIL.Image.init()
    formats = PIL.Image.registered_extensions()
    is_read = {file_format: _is_read(file_format) for file_format in set(formats.values())}
    assert sum(answer is True for answer in is_read.values()) >= 9
    for suffix, file_format in formats.items():
        assert is_read[file_format] in (None, suffix in READ_SUFFIXES), suffix
