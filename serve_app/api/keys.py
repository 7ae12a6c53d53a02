"""API keys: they have names, are held as SHA-256 only, and are read anew where their file changes.

A fast hash without salt is enough for what `image-edits key` makes: nobody guesses 256 random bits.
"""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.settings import AuthSettings

logger = logging.getLogger("ray.serve")

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
NAME_RULE = "1 to 64 letters, digits, `.`, `_`, `@`, `-`"
_HASHED = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_COMMENT = re.compile(r"(^|\s)#.*")
# Between two looks at the file, so that a burst of requests costs one; and its age before it is read.
_LOOK_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the server keeps it. `name` stands in the log; `digest` is its SHA-256."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, key: str, name: str | None = None) -> "ApiKey":
        """Without a name it has the first 8 hex digits of its digest for one."""
        digest = hashlib.sha256(key.encode()).digest()
        return cls(name or digest.hex()[:8], digest)

    @property
    def line(self) -> str:
        """As it stands in `auth.keys_file`."""
        return f"{self.name} sha256:{self.digest.hex()}"


def load_keys(auth: AuthSettings) -> tuple[ApiKey, ...]:
    """The keys of the file and of the environment variable; empty where neither is set, and auth is off.

    Raises ValueError, for the operator, where one is set and cannot be used: a server that was meant to be closed must
    not start open. It tells the line, never what stands there.
    """
    found = _of_file(auth.keys_file) + _of_environment(auth.keys_env)
    _refuse_doubles("key", [(place, key.digest) for place, key in found])
    _refuse_doubles("name", [(place, key.name) for place, key in found])
    return tuple(key for _, key in found)


def _of_file(path: Path | None) -> list[tuple[str, ApiKey]]:
    """Each key, with the place where it stands."""
    if path is None:
        return []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"auth.keys_file: cannot read {path}: {error}") from None
    places = [(f"auth.keys_file: {path}, line {number}", line) for number, line in enumerate(lines, 1)]
    found = [(place, _of_line(words, place)) for place, line in places if (words := _COMMENT.sub("", line).split())]
    if not found:
        raise ValueError(f"auth.keys_file: {path} holds no key; unset it to serve without keys")
    return found


def _of_line(words: list[str], place: str) -> ApiKey:
    match words:
        # A hash without a name would be taken for a key, and whoever reads the file could send it.
        case [key] if not key.startswith("sha256:"):
            return ApiKey.of(key)
        case [name, hashed] if NAME.fullmatch(name) and (digest := _HASHED.fullmatch(hashed)):
            return ApiKey(name, bytes.fromhex(digest[1]))
    raise ValueError(
        f"{place}: expected one word, a key, or `NAME sha256:HEX`, as `image-edits key` prints it; NAME: {NAME_RULE}"
    )


def _of_environment(variable: str) -> list[tuple[str, ApiKey]]:
    value = os.environ.get(variable)
    if value is None:
        return []
    places = [(f"auth.keys_env: {variable}, key {number}", part) for number, part in enumerate(value.split(","), 1)]
    found = [(place, _of_part(text, place)) for place, part in places if (text := part.strip())]
    if not found:
        raise ValueError(f"auth.keys_env: {variable} is set and holds no key; unset it to serve without keys")
    return found


def _of_part(text: str, place: str) -> ApiKey:
    # Base64 ends in =, which names nothing.
    if "=" not in text.rstrip("="):
        return ApiKey.of(text)
    name, _, key = text.partition("=")
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{place}: expected a key, or NAME=KEY; NAME: {NAME_RULE}")
    return ApiKey.of(key, name)


def _refuse_doubles(what: str, found: Sequence[tuple[str, str | bytes]]) -> None:
    places: dict[str | bytes, str] = {}
    for place, value in found:
        if value in places:
            raise ValueError(f"{place}: the same {what} as in {places[value]}")
        places[value] = place


class KeyRing:
    """The keys in force. `auth.keys_file` is read anew where it has changed; one that cannot be used changes nothing.

    Whether keys are asked for is settled at the start. Raises ValueError as `load_keys`.
    """

    def __init__(self, auth: AuthSettings) -> None:
        self._auth = auth
        self._looked_s = time.monotonic()
        # Before it is read: what is written meanwhile is read once more.
        self._read = self._status()
        self._keys = load_keys(auth)

    def __bool__(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._keys)

    def name_of(self, key: bytes) -> str | None:
        """The name of a key that was sent, as UTF-8; None where it is none of these."""
        self._look()
        # Digests are of one length, and all are compared: the time tells nothing about any of them.
        digest = hashlib.sha256(key).digest()
        names = [known.name for known in self._keys if hmac.compare_digest(digest, known.digest)]
        return names[0] if names else None

    def _look(self) -> None:
        """At the file, once in a while."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_PERIOD_S:
            return
        self._looked_s = now_s
        found = self._status()
        if found == self._read or (found is not None and found.is_fresh()):
            return
        self._read = found
        try:
            self._keys = load_keys(self._auth)
        except ValueError as error:
            logger.error("%s; the keys read before stay in force", error)
        else:
            logger.info("auth.keys_file has changed; the keys are now %s", ", ".join(key.name for key in self._keys))

    def _status(self) -> "_Status | None":
        """None where there is no file."""
        try:
            return None if self._auth.keys_file is None else _Status.of(self._auth.keys_file)
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class _Status:
    """What changes with a file, also where it is a link and leads to another one by now."""

    inode: int
    size_bytes: int
    written_ns: int
    changed_ns: int
    """Of the name, owner and permissions too; nobody can set it to a time that was not."""

    @classmethod
    def of(cls, path: Path) -> "_Status":
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_fresh(self) -> bool:
        """Perhaps it is still being written: half a line `NAME sha256:HEX` would be a key."""
        return time.time_ns() - self.changed_ns < _LOOK_PERIOD_S * 1e9
