"""Ray's own ports, as `image-edits serve` opens them: for this machine where Ray can, for those with its token."""

import os
import secrets

_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# With it Ray (2.60) takes 127.0.0.1 for the address of its node, as it does by default on the systems of this name.
# Its processes then listen there only, /metrics included. A replica of Serve still listens on all interfaces.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def check_token_mode() -> None:
    """Raise ValueError if the environment turns Ray's tokens off: the ports of Serve's replicas would obey anyone."""
    mode = os.environ.get(_MODE, "token")
    if mode.lower() != "token":
        raise ValueError(
            f"{_MODE}={mode} in the environment turns Ray's tokens off: whoever reaches a port of Ray could run code "
            "here, and some of these ports are on all interfaces, whatever --host is. Unset it, or set it to token"
        )


def close_ports() -> None:
    """Set the environment of the Ray that this process starts. Ray reads it once, when it is imported.

    The token is new with each start. Ray's own is a file that stays, which Ray (2.60) writes readable for all.
    """
    os.environ[_CLUSTERS] = "0"
    os.environ.setdefault(_MODE, "token")
    if _TOKEN_PATH not in os.environ:
        os.environ.setdefault(_TOKEN, secrets.token_hex(32))
