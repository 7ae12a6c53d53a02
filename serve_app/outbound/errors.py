"""Errors of requests to other servers."""


class OutboundError(Exception):
    """A request that was not sent, or that has no answer of use. The message says why, to whoever chose the URL."""


class TooLarge(OutboundError):
    """An answer of more bytes than the caller of this package wants."""
