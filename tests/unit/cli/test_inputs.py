"""The pictures that arguments name, the names of their outputs, and the record of what is done. Files only."""

import json
import re
from pathlib import Path

import pytest

from serve_app.cli.inputs import JOURNAL, EditTask, Journal, edit_tag, select

ASKED = {"prompt": "make the sky blue", "n": 2}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def found(*named: str, out: str = "out", n: int = 1) -> dict[str, list[str]]:
    tasks = select(named, Path(out), tag="sky", n=n, suffix=".png").tasks
    return {str(task.source): [str(path) for path in task.outputs] for task in tasks}


def test_outputs_are_named_after_their_picture_and_their_edit() -> None:
    assert found("photo.jpg", "a/other.webp", n=2) == {
        "photo.jpg": ["out/photo-sky-1.png", "out/photo-sky-2.png"],
        "a/other.webp": ["out/other-sky-1.png", "out/other-sky-2.png"],
    }


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("Make the sky blue!", "make-the-sky-blue-"),
        ("../../etc/passwd \0 C:\\x", "etc-passwd-c-x-"),
        ("把天空变蓝", "把天空变蓝-"),
        ("?", ""),
        ("caf\udce9", "caf-"),
        # At most 40 bytes of it, and no half a character.
        ("word " * 99, "word-word-word-word-word-word-word-word-"),
        ("天" * 99, "天" * 13 + "-"),
    ],
)
def test_a_tag_has_the_first_words_of_the_instruction_and_a_digest(prompt: str, start: str) -> None:
    tag = edit_tag({"prompt": prompt, "n": 1})
    assert tag[:-6] == start
    assert re.fullmatch("[0-9a-f]{6}", tag[-6:])


def test_edits_that_differ_in_anything_have_different_tags_and_the_same_edit_has_the_same() -> None:
    edits = [{"prompt": "make the sky blue", "n": 1}, {"prompt": "make the sky blue!", "n": 1}]
    edits += [{**edits[0], **more} for more in ({"n": 2}, {"seed": 7}, {"seed": 8}, {"size": "64x48"})]
    assert len({edit_tag(edit) for edit in edits}) == len(edits)
    assert edit_tag({"n": 1, "prompt": "make the sky blue"}) == edit_tag(edits[0])


def test_a_folder_gives_its_pictures_and_keeps_its_folders() -> None:
    make("in/b.JPG", "in/a/c.png", "in/notes.txt", "in/done/b-1.png")
    assert found("in", out="in/done") == {"in/a/c.png": ["in/done/a/c-sky-1.png"], "in/b.JPG": ["in/done/b-sky-1.png"]}
    assert list(found("in", out=".")) == ["in/a/c.png", "in/b.JPG", "in/done/b-1.png"]
    with pytest.raises(ValueError, match="among the pictures of in"):
        found("in", out="in")


def test_a_folder_gives_whatever_the_server_reads() -> None:
    names = ["a.jfif", "b.jpe", "c.HEIC", "d.heif", "e.avif", "f.jxl", "g.jp2", "h.tif", "i.ppm", "j.apng", "k.Jpg"]
    make(*(f"in/{name}" for name in names))
    assert list(found("in")) == [f"in/{name}" for name in names]


def test_a_folder_names_what_it_leaves_out_and_is_quiet_about_what_systems_put_there() -> None:
    junk = ["._a.jpg", ".DS_Store", ".hidden.png", ".git/x.png", "Thumbs.db", "sub/desktop.ini", "__MACOSX/._a.jpg"]
    make("in/a.jpg", "in/notes.txt", "in/sub/film.mp4", "in/no-suffix", *(f"in/{name}" for name in junk))
    found = select(["in"], Path("out"), tag="sky", n=1, suffix=".png")
    assert [str(task.source) for task in found.tasks] == ["in/a.jpg"]
    assert [str(path) for path in found.skipped] == ["in/no-suffix", "in/notes.txt", "in/sub/film.mp4"]


def test_a_file_that_is_named_itself_is_a_picture_whatever_its_name() -> None:
    make("in/notes.txt", "in/.hidden.png")
    assert list(found("in/notes.txt", "in/.hidden.png")) == ["in/notes.txt", "in/.hidden.png"]


def test_patterns_are_for_shells_that_leave_them_alone() -> None:
    make("in/b.jpg", "in/a/c.jpg", "in/a.jpg/x.txt", "in/[d].jpg")
    assert list(found("in/*.jpg")) == ["in/[d].jpg", "in/b.jpg"]
    assert list(found("in/**/*.jpg")) == ["in/[d].jpg", "in/a/c.jpg", "in/b.jpg"]
    assert list(found("in/[d].jpg")) == ["in/[d].jpg"]
    assert list(found("no*.jpg")) == ["no*.jpg"]


def test_a_picture_that_is_named_twice_is_edited_once() -> None:
    make("in/a.jpg")
    assert list(found("in/a.jpg", "in", str(Path("in/a.jpg").absolute()))) == ["in/a.jpg"]


def test_no_two_pictures_share_an_output() -> None:
    make("in/a.jpg", "in/a.png", "in/b.png", "other/b.png")
    assert found("in") == {
        "in/a.jpg": ["out/a.jpg-sky-1.png"], "in/a.png": ["out/a.png-sky-1.png"], "in/b.png": ["out/b-sky-1.png"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"in/b\.png and other/b\.png would have the same outputs"):
        found("in/b.png", "other/b.png")


def one() -> EditTask:
    (task,) = select(["photo.jpg"], Path("out"), tag="sky", n=2, suffix=".png").tasks
    return task


def test_what_is_done_is_known_by_content_and_words() -> None:
    Path("out").mkdir()
    assert Journal(Path("out")).seeds(one(), b"content", ASKED) is None
    Journal(Path("out")).save(one(), b"content", ASKED, [7, 8], [b"first", b"second"])
    assert [path.read_bytes() for path in one().outputs] == [b"first", b"second"]
    again = Journal(Path("out"))
    assert again.seeds(one(), b"content", ASKED) == [7, 8]
    for content, asked in ((b"other", ASKED), (b"content", {**ASKED, "prompt": "make the sky red"})):
        with pytest.raises(FileExistsError, match=r"out/photo-sky-1\.png is there, and not from this edit"):
            again.seeds(one(), content, asked)
    assert sorted(path.name for path in Path("out").iterdir()) == [JOURNAL, "photo-sky-1.png", "photo-sky-2.png"]


def test_what_was_cut_off_is_done_again() -> None:
    Path("out").mkdir()
    journal = Journal(Path("out"))
    journal.save(one(), b"content", ASKED, [7, 8], [b"first", b"second"])
    one().outputs[1].unlink()
    assert journal.seeds(one(), b"content", ASKED) is None
    # A line without its end does not count.
    text = (Path("out") / JOURNAL).read_text()
    (Path("out") / JOURNAL).write_text(text + text[:30])
    journal = Journal(Path("out"))
    journal.save(one(), b"content", ASKED, [9, 10], [b"first", b"second"])
    assert Journal(Path("out")).seeds(one(), b"content", ASKED) == [9, 10]


@pytest.mark.parametrize("odd", ["line\u2028separator", "next\x85line", "latin-\udce9"])
def test_names_and_words_may_hold_anything(odd: str) -> None:
    picture = EditTask(Path(f"{odd}.jpg"), (Path("out") / f"{odd}-1.png",))
    asked = {"prompt": odd.replace("\udce9", ""), "n": 1}
    Path("out").mkdir()
    for _ in range(2):
        Journal(Path("out")).save(picture, b"content", asked, [7], [b"1"])
        assert Journal(Path("out")).seeds(picture, b"content", asked) == [7]


def test_a_file_of_unknown_origin_is_not_touched() -> None:
    make("out/photo-sky-2.png")
    with pytest.raises(FileExistsError, match=r"out/photo-sky-2\.png"):
        Journal(Path("out")).seeds(one(), b"content", ASKED)


def test_an_output_that_cannot_be_written_leaves_nothing_half() -> None:
    Path("out/photo-sky-1.png").mkdir(parents=True)
    with pytest.raises(OSError, match=r"photo-sky-1\.png"):
        Journal(Path("out")).save(one(), b"content", ASKED, [7, 8], [b"first", b"second"])
    assert [path.name for path in Path("out").iterdir()] == ["photo-sky-1.png"]


def test_the_journal_can_be_read_by_others() -> None:
    Path("out").mkdir()
    Journal(Path("out")).save(one(), b"content", {**ASKED, "prompt": "把天空变蓝"}, [7, 8], [b"1", b"2"])
    (line,) = (Path("out") / JOURNAL).read_text("utf-8").splitlines()
    assert "把天空变蓝" in line
    assert json.loads(line)["outputs"] == ["photo-sky-1.png", "photo-sky-2.png"]
