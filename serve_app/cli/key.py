"""`image-edits key`: a new random key.

The key goes to standard error, this once; to standard output goes its line for `auth.keys_file`, from which nobody can
tell the key: `image-edits key ann >> keys`.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence

from serve_app.api.keys import NAME, NAME_RULE, ApiKey

_RANDOM_BYTES = 32


def main(prog: str, words: Sequence[str]) -> int:
    """Print a key and its line; the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", type=_name, help=f"whose key it is, for the log: {NAME_RULE}")
    name = parser.parse_args(words).name
    key = secrets.token_urlsafe(_RANDOM_BYTES)
    print(f"The key of {name}, shown this once: {key}", file=sys.stderr)
    print(ApiKey.of(key, name).line)
    return 0


def _name(text: str) -> str:
    if NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(NAME_RULE)
    return text
