"""`image-edits key`: a new random key."""

import secrets
import sys

from serve_app.api.keys import ApiKey

_RANDOM_BYTES = 32


def print_new_key(name: str) -> None:
    """Print a new key to standard error, and its line for `auth.keys_file` to standard output."""
    key = secrets.token_urlsafe(_RANDOM_BYTES)
    print(f"The key of {name}, shown this once: {key}", file=sys.stderr)
    print(ApiKey.of(key, name).line)
