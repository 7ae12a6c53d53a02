"""Pictures that a JSON body names by their URLs, fetched where the operator allows it."""

import asyncio
from collections.abc import Sequence

from serve_app.errors import InvalidInput
from serve_app.forms.memory import Reservation
from serve_app.forms.upload import UrlPicture
from serve_app.outbound.addresses import CheckedBackend
from serve_app.outbound.errors import OutboundError, TooLarge
from serve_app.outbound.hosts import AllowedHosts
from serve_app.outbound.requests import CheckedRequests
from serve_app.settings import AppSettings


class PictureFetcher:
    """The fetching of pictures by URL, as `inputs` of the settings allows it; by default none is fetched.

    `backend`: makes the connections, by default to public addresses only.
    """

    def __init__(self, settings: AppSettings, backend: CheckedBackend | None = None) -> None:
        inputs, self._limits = settings.inputs, settings.limits
        self._timeout_s = inputs.timeout_s
        self._requests: CheckedRequests | None = None
        if inputs.allowed_hosts:
            hosts = AllowedHosts(inputs.allowed_hosts)
            self._requests = CheckedRequests(hosts, inputs.timeout_s, inputs.max_redirects, backend)

    async def fetch(self, pictures: Sequence[UrlPicture], reservation: Reservation | None) -> None:
        """Fetch the content of every picture, one after another. Their bytes count as those of an upload.

        Nothing is sent if one of the URLs is not allowed. Raises InvalidInput with the field and the index, and
        Overloaded if `reservation` has no room.
        """
        for picture in pictures:
            self._check(picture)
        left_bytes = self._limits.max_request_bytes
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        for picture in pictures:
            picture.content = await self._content(picture, left_bytes, deadline_s, reservation)
            left_bytes -= len(picture.content)

    def _check(self, picture: UrlPicture) -> CheckedRequests:
        if self._requests is None:
            message = f"{picture.name}: no URL is fetched; send the picture itself, as base64 or as a data URL"
            raise InvalidInput(message, param=picture.name)
        try:
            self._requests.check(picture.url)
        except OutboundError as error:
            raise _not_fetched(picture, str(error)) from None
        return self._requests

    async def _content(
        self, picture: UrlPicture, left_bytes: int, deadline_s: float, reservation: Reservation | None
    ) -> bytes:
        most = min(self._limits.max_file_bytes, left_bytes)
        reserve = reservation.reserve_bytes if reservation is not None else _ignore
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._check(picture).get(picture.url, most, reserve)
        except TimeoutError:
            reason = f"the images of a request may take {self._timeout_s:g} s together"
        except TooLarge:
            reason = f"it is larger than {most} bytes"
            if left_bytes < self._limits.max_file_bytes:
                reason = f"the images of the request are larger than {self._limits.max_request_bytes} bytes together"
        except OutboundError as error:
            reason = str(error)
        raise _not_fetched(picture, reason)


def _ignore(count: int) -> None:
    """Reserve nothing."""


def _not_fetched(picture: UrlPicture, reason: str) -> InvalidInput:
    message = f"{picture.name}: the URL at index {picture.index} cannot be fetched: {reason}"
    return InvalidInput(message, param=picture.name)
