"""Fingerprints: two edits are the same if their fields and the bytes of their pictures are."""

from serve_app.forms.fingerprint import Fingerprint
from serve_app.forms.upload import PictureFiles, ReadPicture, Values


def of(values: Values, *files: bytes, references: int = 0, per_image: list[int] | None = None, masks: int = 0) -> str:
    """Return the digest; the last files are `references`, and behind them `masks`."""
    reads: list[ReadPicture] = [lambda file=file: file for file in files]  # type: ignore[misc]
    last, images = len(files) - masks, len(files) - masks - references
    fingerprint = Fingerprint(values, PictureFiles(reads[:images], reads[images:last], per_image, reads[last:]))
    # In any order, and however often they are read.
    for _ in range(2):
        hashed = [*fingerprint.pictures.images, *fingerprint.pictures.references, *fingerprint.pictures.masks]
        assert [read() for read in reversed(hashed)] == list(reversed(files))
    return fingerprint.hexdigest()


def test_the_same_fields_and_files_are_the_same_edit() -> None:
    assert of({"prompt": ["x"], "n": ["2"]}, b"a", b"b") == of({"n": ["2"], "prompt": ["x"]}, b"a", b"b")


def test_whatever_differs_is_another_edit() -> None:
    edits = [
        of({"prompt": ["x"]}, b"a", b"b"),
        of({"prompt": ["x"]}, b"b", b"a"),
        of({"prompt": ["x"]}, b"a", b"b", references=1),
        of({"prompt": ["x"]}, b"a", b"b", references=1, per_image=[1]),
        of({"prompt": ["x"]}, b"a", b"b", masks=1),
        of({"prompt": ["x"]}, b"a", b"c", masks=1),
        of({"prompt": ["x"]}, b"a"),
        of({"prompt": ["x"]}, b"ab", b""),
        of({"prompt": ["y"]}, b"a", b"b"),
        of({"prompt": ["x", "y"]}, b"a", b"b"),
        of({"prompt": ["y", "x"]}, b"a", b"b"),
        of({"prompt": ["x"], "n": ["1"]}, b"a", b"b"),
        of({"prompt": ['x"],"n":["1']}, b"a", b"b"),
    ]
    assert len(set(edits)) == len(edits)


def test_a_number_is_not_the_text_that_writes_it() -> None:
    assert of({"n": [1]}) != of({"n": ["1"]})
    assert of({"stream": [True]}) != of({"stream": [1]})
    assert of({"seed": [2**53 - 1]}) != of({"seed": [2**53 - 2]})
