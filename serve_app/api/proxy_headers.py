"""The check of request headers that Ray Serve's proxy (2.60) obeys from any caller.

Values that would keep an edit running after its caller has left are refused.
"""

import re

from starlette.datastructures import Headers

from serve_app.errors import InvalidInput

_DISCONNECT = "x-request-disconnect-disabled"
_TIMEOUT = "x-request-timeout-seconds"

# Zero, negative numbers, NaN and infinity would turn the proxy's timeout off; the proxy silently ignores words.
_SECONDS = re.compile(r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,3})?")


def check_proxy_headers(headers: Headers) -> None:
    """Raise InvalidInput, which names the header, for values that cannot be honoured. Does not read the body."""
    if any(value != "?0" for value in headers.getlist(_DISCONNECT)):
        message = f"{_DISCONNECT}: leave it out; an edit is cancelled when its caller disconnects"
        raise InvalidInput(message, param=_DISCONNECT)
    timeouts = headers.getlist(_TIMEOUT)
    if len(timeouts) > 1 or any(not _SECONDS.fullmatch(value) for value in timeouts):
        raise InvalidInput(f"{_TIMEOUT} must be sent once, as seconds in digits, such as 30 or 2.5", param=_TIMEOUT)
