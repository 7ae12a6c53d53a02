"""API keys: the server keeps a name and a SHA-256 of each, and reloads them when their file changes.

A fast hash without salt is enough for the keys of `image-edits key`: 256 random bits cannot be guessed.
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
CHECK_PERIOD_S = 1.0
"""Least time between two checks of the file, so that a burst of requests costs one; also its least age when read."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the server keeps it: `name` is for the log, `digest` is the SHA-256 of the key."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, key: str, name: str | None = None) -> "ApiKey":
        """Hash a key. Without a name, the key is named by the first 8 hex digits of its digest."""
        digest = hashlib.sha256(key.encode()).digest()
        return cls(name or digest.hex()[:8], digest)

    @property
    def line(self) -> str:
        """The key's line in `auth.keys_file`."""
        return f"{self.name} sha256:{self.digest.hex()}"


def load_keys(auth: AuthSettings) -> tuple[ApiKey, ...]:
    """Return the keys of the file and of the environment variable; if neither is set, none, and auth is off.

    Raises ValueError, for the operator, if one of the two is set and cannot be used: a server that was meant to require
    keys must not start without. The message names the line and never quotes it.
    """
    found = _read_file(auth.keys_file) + _read_environment(auth.keys_env)
    _reject_duplicates("key", [(place, key.digest) for place, key in found])
    _reject_duplicates("name", [(place, key.name) for place, key in found])
    return tuple(key for _, key in found)


def _read_file(path: Path | None) -> list[tuple[str, ApiKey]]:
    """Return each key with its place, for messages."""
    if path is None:
        return []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"auth.keys_file: cannot read {path}: {error}") from None
    places = [(f"auth.keys_file: {path}, line {number}", line) for number, line in enumerate(lines, 1)]
    found = [(place, _parse_line(words, place)) for place, line in places if (words := _COMMENT.sub("", line).split())]
    if not found:
        raise ValueError(f"auth.keys_file: {path} holds no key; unset it to serve without keys")
    return found


def _parse_line(words: list[str], place: str) -> ApiKey:
    match words:
        # A hash without a name would count as a key in plain text, which every reader of the file could send.
        case [key] if not key.startswith("sha256:"):
            return ApiKey.of(key)
        case [name, hashed] if NAME.fullmatch(name) and (digest := _HASHED.fullmatch(hashed)):
            return ApiKey(name, bytes.fromhex(digest[1]))
    raise ValueError(
        f"{place}: expected one word, a key, or `NAME sha256:HEX`, as `image-edits key` prints it; NAME: {NAME_RULE}"
    )


def _read_environment(variable: str) -> list[tuple[str, ApiKey]]:
    value = os.environ.get(variable)
    if value is None:
        return []
    places = [(f"auth.keys_env: {variable}, key {number}", part) for number, part in enumerate(value.split(","), 1)]
    found = [(place, _parse_part(text, place)) for place, part in places if (text := part.strip())]
    if not found:
        raise ValueError(f"auth.keys_env: {variable} is set and holds no key; unset it to serve without keys")
    return found


def _parse_part(text: str, place: str) -> ApiKey:
    # A key in Base64 may end in =, which separates no name.
    if "=" not in text.rstrip("="):
        return ApiKey.of(text)
    name, _, key = text.partition("=")
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{place}: expected a key, or NAME=KEY; NAME: {NAME_RULE}")
    return ApiKey.of(key, name)


def _reject_duplicates(what: str, found: Sequence[tuple[str, str | bytes]]) -> None:
    places: dict[str | bytes, str] = {}
    for place, value in found:
        if value in places:
            raise ValueError(f"{place}: the same {what} as in {places[value]}")
        places[value] = place


class KeyRing:
    """The keys in force, reloaded when `auth.keys_file` changes; if the new file cannot be used, the old keys stay.

    Whether a server requires keys is decided when it starts. Raises ValueError as `load_keys`.
    """

    def __init__(self, auth: AuthSettings, check_period_s: float = CHECK_PERIOD_S) -> None:
        self._auth = auth
        self._check_period_s = check_period_s
        self._checked_s = time.monotonic()
        # Taken before the keys are loaded, so that a change in between is noticed.
        self._loaded_status = self._file_status()
        self._keys = load_keys(auth)

    def __bool__(self) -> bool:
        """Return whether the server requires keys."""
        return bool(self._keys)

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key that a caller has sent, as UTF-8, or None if it is not in force."""
        self._reload_if_changed()
        # All digests are compared, and they have one length, so the time taken reveals nothing about any of them.
        digest = hashlib.sha256(key).digest()
        names = [known.name for known in self._keys if hmac.compare_digest(digest, known.digest)]
        return names[0] if names else None

    def _reload_if_changed(self) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s < self._check_period_s:
            return
        self._checked_s = now_s
        status = self._file_status()
        if status == self._loaded_status or (status is not None and status.is_fresh(self._check_period_s)):
            return
        self._loaded_status = status
        try:
            self._keys = load_keys(self._auth)
        except ValueError as error:
            logger.error("%s; the keys read before stay in force", error)
        else:
            logger.info("auth.keys_file has changed; the keys are now %s", ", ".join(key.name for key in self._keys))

    def _file_status(self) -> "_FileStatus | None":
        """Return the status of `auth.keys_file`, or None if there is no such file."""
        try:
            return None if self._auth.keys_file is None else _FileStatus.of(self._auth.keys_file)
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class _FileStatus:
    """The values that differ once a file has changed, even if its path is a link that leads to another file now."""

    inode: int
    size_bytes: int
    written_ns: int
    changed_ns: int
    """The last change of content, name, owner or permissions; unlike `written_ns`, it cannot be set back."""

    @classmethod
    def of(cls, path: Path) -> "_FileStatus":
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_fresh(self, age_s: float) -> bool:
        """Return whether the file is younger than `age_s`: half a line `NAME sha256:HEX` would count as a key."""
        return time.time_ns() - self.changed_ns < age_s * 1e9
