"""API keys: the contents of file and variable, changes while a server runs, and the command."""

import base64
import hashlib
import hmac
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner

from serve_app.api import keys
from serve_app.api.keys import ApiKey, KeyRing, load_keys
from serve_app.cli.main import main
from serve_app.settings import AuthSettings

PATIENCE_S = 20
# For tests that wait for checks of the file; a server checks it each second.
CHECK_PERIOD_S = 0.1
COMMAND = str(Path(sys.executable).parent / "image-edits")
VARIABLE = "IMAGE_EDITS_API_KEYS"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def line(key: str, name: str) -> str:
    return ApiKey.of(key, name).line + "\n"


def loaded(file: Path, content: str) -> list[tuple[str, bytes]]:
    file.write_text(content, "utf-8")
    return [(key.name, key.digest) for key in load_keys(AuthSettings(keys_file=file))]


def sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


# --- what may stand there -----------------------------------------------------------------------------------------


def test_a_file_holds_named_hashes_and_plain_keys(file: Path) -> None:
    named = f"ann@lab.example sha256:{sha256('alpha').hex()}"
    loud = f"Bob_2   sha256:{sha256('beta').hex().upper()}   # until May"
    assert loaded(file, f"# the team's keys\n\n{named}\n{loud}\n ga#mma=  # plain\n") == [
        ("ann@lab.example", sha256("alpha")),
        ("Bob_2", sha256("beta")),
        # The name of a plain key is the beginning of its hash.
        (sha256("ga#mma=").hex()[:8], sha256("ga#mma=")),
    ]


def test_a_variable_holds_named_and_plain_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    padded = base64.b64encode(b"x" * 16).decode()
    assert padded.endswith("==")
    monkeypatch.setenv(VARIABLE, f" ann=alpha=1 , ,schlüssel,{padded}")
    assert [(key.name, key.digest) for key in load_keys(AuthSettings())] == [
        ("ann", sha256("alpha=1")),
        (sha256("schlüssel").hex()[:8], sha256("schlüssel")),
        (sha256(padded).hex()[:8], sha256(padded)),
    ]


def test_neither_set_is_no_key_and_both_are_taken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_keys(AuthSettings()) == ()
    monkeypatch.setenv("MY_KEYS", "bob=beta")
    file.write_text(line("alpha", "ann"))
    assert [key.name for key in load_keys(AuthSettings(keys_file=file, keys_env="MY_KEYS"))] == ["ann", "bob"]


GOOD = ApiKey.of("alpha", "ann").line
HEX = sha256("S3CRET").hex()


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("ann S3CRET", "expected one word, a key, or `NAME sha256:HEX`"),
        ("S3CRET and more words", "expected one word"),
        (f"sha256:{HEX}", "expected one word"),
        (f"bob sha256:{HEX[:-1]}", "expected one word"),
        (f"bob sha256:{HEX}0", "expected one word"),
        (f"bob sha512:{HEX}", "expected one word"),
        (f"b/b sha256:{HEX}", "expected one word"),
        (f"{'b' * 65} sha256:{HEX}", "expected one word"),
        (f"bob sha256: {HEX}", "expected one word"),
        (f"ann sha256:{HEX}", "the same name as in auth.keys_file: {file}, line 2"),
        (f"bob sha256:{sha256('alpha').hex()}", "the same key as in auth.keys_file: {file}, line 2"),
        ("alpha", "the same key as in auth.keys_file: {file}, line 2"),
    ],
)
def test_a_line_that_cannot_be_used_is_reported_by_its_number_alone(file: Path, bad: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="line 4") as caught:
        loaded(file, f"# keys\n{GOOD}\n\n{bad}\nother\n")
    message = str(caught.value)
    assert message.startswith(f"auth.keys_file: {file}, line 4: {complaint.format(file=file)}")
    assert not re.search("S3CRET|alpha|[0-9a-f]{16}", message.replace(str(file), ""))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "is set and holds no key; unset it to serve without keys"),
        (" , ", "is set and holds no key; unset it to serve without keys"),
        ("x,ann smith=S3CRET", ", key 2: expected a key, or NAME=KEY"),
        ("=S3CRET", ", key 1: expected a key, or NAME=KEY"),
        ("S3CRET,,S3CRET", ", key 3: the same key as in auth.keys_env: IMAGE_EDITS_API_KEYS, key 1"),
        ("ann=S3CRET,ann=other", ", key 2: the same name as in auth.keys_env: IMAGE_EDITS_API_KEYS, key 1"),
    ],
)
def test_a_variable_that_cannot_be_used_is_reported_without_its_keys(
    value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match="keys_env") as caught:
        load_keys(AuthSettings())
    message = str(caught.value)
    assert message.removeprefix("auth.keys_env: IMAGE_EDITS_API_KEYS").lstrip(" ").startswith(complaint.lstrip(" "))
    assert "S3CRET" not in message


def test_a_key_stands_in_the_file_or_in_the_variable_but_not_in_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "alpha")
    with pytest.raises(ValueError, match=r"key 1: the same key as in auth\.keys_file: .*, line 1"):
        loaded(file, line("alpha", "ann"))


# --- which key it is ----------------------------------------------------------------------------------------------


def test_a_key_is_known_by_its_name(file: Path) -> None:
    file.write_text(line("alpha", "ann") + line("schlüssel", "bob"))
    ring = KeyRing(AuthSettings(keys_file=file))
    assert ring
    assert ring.name_of(b"alpha") == "ann"
    assert ring.name_of("schlüssel".encode()) == "bob"
    # The contents of the file open nothing.
    for sent in (b"", b"alph", b"alphaa", b"ann", sha256("alpha"), sha256("alpha").hex().encode()):
        assert ring.name_of(sent) is None


def test_every_key_is_compared_in_constant_time_whichever_fits(file: Path) -> None:
    """Count the calls of hmac.compare_digest, by the interpreter's profiler."""
    file.write_text("".join(line(key, key) for key in ("one", "two", "three")))
    ring = KeyRing(AuthSettings(keys_file=file))

    def comparisons(sent: bytes) -> int:
        count = 0

        def profile(frame: FrameType, event: str, called: Any) -> None:
            nonlocal count
            count += event == "c_call" and called is hmac.compare_digest

        sys.setprofile(profile)
        try:
            ring.name_of(sent)
        finally:
            sys.setprofile(None)
        return count

    assert [comparisons(sent) for sent in (b"one", b"two", b"three", b"four", b"", b"x" * 10**6)] == [3] * 6


# --- while a server runs ------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


def replace(file: Path, content: str) -> None:
    """Replace the file as careful programs do: its name leads to the old one or to the new one."""
    new = file.with_name("new")
    new.write_text(content)
    new.replace(file)


def write(file: Path, content: str) -> None:
    file.write_text(content)


@pytest.mark.parametrize("change", [replace, write])
def test_a_changed_file_is_read_anew(file: Path, change: Callable[[Path, str], None]) -> None:
    file.write_text(line("alpha", "ann"))
    ring = KeyRing(AuthSettings(keys_file=file), CHECK_PERIOD_S)
    change(file, line("beta-", "bob"))
    wait_until(lambda: ring.name_of(b"beta-") == "bob", "the new key is taken")
    assert ring.name_of(b"alpha") is None


def test_links_are_followed_as_kubernetes_swaps_them(tmp_path: Path) -> None:
    # A mounted secret: keys -> ..data/keys, ..data -> the folder of the day, and ..data is replaced.
    for day, key in (("monday", "alpha"), ("friday", "gamma")):
        (tmp_path / day).mkdir()
        (tmp_path / day / "keys").write_text(line(key, "ann"))
    stat = (tmp_path / "monday" / "keys").stat()
    os.utime(tmp_path / "friday" / "keys", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "..data").symlink_to("monday")
    (tmp_path / "keys").symlink_to("..data/keys")
    ring = KeyRing(AuthSettings(keys_file=tmp_path / "keys"), CHECK_PERIOD_S)
    assert ring.name_of(b"alpha") == "ann"
    (tmp_path / "..new").symlink_to("friday")
    (tmp_path / "..new").replace(tmp_path / "..data")
    wait_until(lambda: ring.name_of(b"gamma") == "ann", "the new key is taken")
    assert ring.name_of(b"alpha") is None


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    replace(file, "# nobody\n")


def spoil(file: Path) -> None:
    replace(file, line("beta", "bob") + "carl S3CRET\n")


@pytest.mark.parametrize("change", [remove, empty, spoil])
def test_a_file_that_cannot_be_used_changes_nothing_and_is_logged_once(
    file: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ray.serve")
    file.write_text(line("alpha", "ann"))
    ring = KeyRing(AuthSettings(keys_file=file), CHECK_PERIOD_S)
    change(file)

    def complaints() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    wait_until(lambda: ring.name_of(b"alpha") == "ann" and bool(complaints()), "it is logged")
    # Nothing opens or closes, and the next checks do not log it again.
    for _ in range(3):
        time.sleep(1.05 * CHECK_PERIOD_S)
        assert ring.name_of(b"alpha") == "ann"
        assert ring.name_of(b"beta") is ring.name_of(b"") is None
    (complaint,) = complaints()
    assert complaint.startswith(f"auth.keys_file: {'cannot read ' if change is remove else ''}{file}")
    assert complaint.endswith("; the keys read before stay in force")
    assert "S3CRET" not in complaint
    replace(file, line("gamma", "ann"))
    wait_until(lambda: ring.name_of(b"gamma") == "ann", "the mended file is read")
    assert ring.name_of(b"alpha") is None


def test_a_file_that_may_still_be_written_is_not_read_yet(file: Path) -> None:
    file.write_text(line("alpha", "ann"))
    ring = KeyRing(AuthSettings(keys_file=file))
    # The next call checks the file.
    time.sleep(1.1 * keys.CHECK_PERIOD_S)
    file.write_text("bob")
    # Without its hash, the name would count as a key.
    assert ring.name_of(b"bob") is None
    file.write_text(line("beta", "bob"))
    wait_until(lambda: ring.name_of(b"beta") == "bob", "the whole file is read")


def test_keys_of_the_environment_stay_when_the_file_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "root=omega")
    file.write_text(line("alpha", "ann"))
    ring = KeyRing(AuthSettings(keys_file=file), CHECK_PERIOD_S)
    replace(file, line("beta", "bob"))
    wait_until(lambda: ring.name_of(b"beta") == "bob", "the new key is taken")
    assert ring.name_of(b"omega") == "root"


# --- the command --------------------------------------------------------------------------------------------------


def test_a_key_that_the_command_makes_opens(file: Path) -> None:
    done = subprocess.run([COMMAND, "key", "ann"], capture_output=True, text=True, check=True)
    key = re.fullmatch(r"The key of ann, shown this once: (\S{43})\n", done.stderr)
    assert key is not None
    assert key[1] not in done.stdout
    file.write_text(done.stdout)
    ring = KeyRing(AuthSettings(keys_file=file))
    assert ring.name_of(key[1].encode()) == "ann"
    again = CliRunner().invoke(main, ["key", "ann"])
    assert (again.exit_code, again.stdout == done.stdout) == (0, False)


@pytest.mark.parametrize("name", ["ann smith", "", "ann=x", "a" * 65])
def test_a_name_that_could_not_stand_in_the_file_makes_no_key(name: str) -> None:
    done = CliRunner().invoke(main, ["key", name])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "1 to 64 letters, digits" in done.stderr
