"""What the store keeps of an Idempotency-Key: the edit that it was sent with, and the answer to it."""

from dataclasses import dataclass

import orjson

from serve_app.errors import EditError, from_body

_VERSION = 1


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The value of a key's record. `fingerprint`: identifies the content of the request.

    `status`, `headers`: of the answer, whose body is a blob; None while the edit runs. `error`: the error with which
    the edit has failed, for the requests that wait for it.
    """

    fingerprint: str
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    error: EditError | None = None

    def dump(self) -> bytes:
        error = None
        if self.error is not None:
            error = {
                "status": self.error.status,
                "code": self.error.code,
                "message": self.error.message,
                "param": self.error.param,
                "retry_after_s": self.error.retry_after_s,
            }
        return orjson.dumps(
            {
                "version": _VERSION,
                "fingerprint": self.fingerprint,
                "status": self.status,
                "headers": self.headers,
                "error": error,
            }
        )

    @classmethod
    def load(cls, dumped: bytes) -> "KeyRecord":
        """Return the value of `dump`. Raises ValueError for that of another version."""
        value = orjson.loads(dumped)
        if value["version"] != _VERSION:
            raise ValueError("the key of another version")
        error = None if value["error"] is None else from_body(**value["error"])
        headers = tuple((name, text) for name, text in value["headers"])
        return cls(value["fingerprint"], value["status"], headers, error)
