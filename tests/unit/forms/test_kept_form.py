"""Forms kept for a later process."""

from typing import Any

import numpy as np
import pytest

from serve_app.forms import kept_form
from serve_app.forms.upload import PictureFiles

VALUES: dict[str, list[Any]] = {"prompt": ["make it night", "mirror it"], "seed": [2**53 - 4], "guidance_scale": [2.5]}


def files(*contents: bytes) -> list[Any]:
    return [lambda data=data: data for data in contents]


def read(reads: list[Any]) -> list[bytes]:
    return [each() for each in reads]


@pytest.mark.parametrize("per_image", [None, [0, 2]])
def test_every_field_and_every_file_comes_back(per_image: list[int] | None) -> None:
    pictures = PictureFiles(files(b"one", b"two"), files(b"", b"x" * 70_000), per_image, masks=files(b"mask"))
    kind, values, found = kept_form.load(kept_form.dump("edit", VALUES, pictures))
    assert (kind, values) == ("edit", VALUES)
    assert (read(found.images), read(found.references)) == ([b"one", b"two"], [b"", b"x" * 70_000])
    assert (read(found.masks), found.per_image) == ([b"mask"], per_image)


def test_a_form_is_as_small_as_what_arrived() -> None:
    picture = np.random.default_rng(0).bytes(100_000)
    assert len(kept_form.dump("edit", VALUES, PictureFiles(files(picture)))) < len(picture) + 300


@pytest.mark.parametrize(
    "data", [b"", b"something else", kept_form.dump("edit", {}, PictureFiles()).replace(b":1,", b":2,")]
)
def test_bytes_of_another_version_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="another version"):
        kept_form.load(data)
