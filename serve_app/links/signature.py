"""Signatures of links, by a secret that all processes of an application share through its store."""

import hashlib
import hmac
import secrets

from serve_app.store.records import Bounds, Change, Conflict
from serve_app.store.store import Store

_GROUP, _ID = "secrets", "links"
_BOUNDS = Bounds(max_records=1, max_open_bytes=0, max_ended_bytes=0)
_KEEP_S = 10 * 365 * 86_400.0


def sign(secret: bytes, text: str) -> str:
    """Return the signature of a text: HMAC-SHA256, as hexadecimal digits."""
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def is_signed(secret: bytes, text: str, signature: str) -> bool:
    """Return whether the signature is that of the text, in constant time."""
    # As bytes: of texts, only those in ASCII can be compared.
    return hmac.compare_digest(sign(secret, text).encode(), signature.encode())


async def read_secret(store: Store) -> bytes:
    """Return the secret of the application. Not kept in this process: a store that has lost it gets a new one.

    Raises StoreUnavailable.
    """
    found = await store.records.get(_GROUP, _ID)
    if found is None:
        change = Change(_ID, _ID, 0, is_open=False, value=secrets.token_bytes(32), keep_s=_KEEP_S, size=0)
        [outcome] = await store.records.put(_GROUP, [change], _BOUNDS)
        if not isinstance(outcome, Conflict):
            return change.value
        found = outcome.found
    assert found is not None
    return found.value
