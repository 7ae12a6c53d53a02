"""A client of the server: plain HTTP with `requests`."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import requests

from serve_app.request import Pixels

TIMEOUT_S = 120


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures_of(response: requests.Response) -> list[Pixels]:
    """Return the pictures of an answer, in its order."""
    assert response.status_code == 200, response.text
    return [picture_of(item) for item in response.json()["data"]]


def picture_of(item: dict[str, Any]) -> Pixels:
    """Return the picture in one element of `data`, or in one event."""
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


@dataclass(frozen=True)
class Client:
    base: str

    def edit(
        self,
        pictures: Sequence[Pixels],
        *,
        timeout_s: float = TIMEOUT_S,
        headers: dict[str, str] | None = None,
        **data: Any,
    ) -> requests.Response:
        files = [("images", (f"{k}.png", png(pixels), "image/png")) for k, pixels in enumerate(pictures)]
        return requests.post(f"{self.base}/v1/images/edits", files=files, data=data, headers=headers, timeout=timeout_s)

    def edit_all(self, edits: Sequence[dict[str, Any]]) -> list[requests.Response]:
        """Send all edits at once; return the answers in the order of the edits."""
        with ThreadPoolExecutor(len(edits)) as pool:
            futures: list[Future[requests.Response]] = [pool.submit(self.edit, **edit) for edit in edits]
            return [future.result() for future in futures]

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.base + path, timeout=TIMEOUT_S, **options)
