"""Headers that Ray Serve's proxy (2.60) obeys, whoever sends them: those that would let a caller keep work for which
nobody waits are refused.
"""

import re

from starlette.datastructures import Headers

from serve_app.errors import InvalidInput

_DISCONNECT = "x-request-disconnect-disabled"
_TIMEOUT = "x-request-timeout-seconds"

# Zero, less, NaN and infinity would switch the proxy's timeout off, and a word is passed over in silence.
_SECONDS = re.compile(r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,3})?")


def check_proxy_headers(headers: Headers) -> None:
    """Raise InvalidInput, which names the header, for those that cannot be honoured. Looks at no body."""
    if any(value != "?0" for value in headers.getlist(_DISCONNECT)):
        raise InvalidInput(f"{_DISCONNECT}: leave it out; an edit ends when its caller leaves", param=_DISCONNECT)
    timeouts = headers.getlist(_TIMEOUT)
    if len(timeouts) > 1 or any(not _SECONDS.fullmatch(value) for value in timeouts):
        raise InvalidInput(f"{_TIMEOUT} must be given once, as seconds in digits, such as 30 or 2.5", param=_TIMEOUT)
