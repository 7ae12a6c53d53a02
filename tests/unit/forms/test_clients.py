"""The forms that clients send, by their source as of 2026-11, and what becomes of them."""

from dataclasses import dataclass, field

import pytest

from serve_app.images.geometry import Size
from serve_app.settings import AppSettings
from tests.uploads import form_of, picture, text

SETTINGS = AppSettings()
NAMED = {"model": "gpt-image-1", "prompt": "make it blue"}


@dataclass(frozen=True)
class Sent:
    """A form with one picture. `n`, `size` and `ignored`: as the server must read it."""

    client: str
    fields: dict[str, str]
    picture: str = "image"
    n: int = 1
    size: Size | None = None
    ignored: tuple[str, ...] = field(default=())


SQUARE = Size(1024, 1024)
FORMS = (
    Sent("Open WebUI without a model", {"model": "", "prompt": "make it blue", "response_format": "b64_json"}),
    Sent("LibreChat", {**NAMED, "model": "gpt-image-2.5-flare", "quality": "auto", "size": "auto"}, "image[]"),
    Sent(
        "n8n",
        {**NAMED, "n": "1", "size": "1024x1024", "input_fidelity": "low", "quality": "high", "output_format": "png"},
        *("image[]", 1, SQUARE, ("input_fidelity", "quality")),
    ),
    Sent("Dify", {**NAMED, "size": "1024x1024", "quality": "low", "n": "2"}, "image", 2, SQUARE, ("quality",)),
    Sent(
        "ComfyUI",
        {**NAMED, "n": "1", "size": "auto", "quality": "low", "background": "auto", "moderation": "low"},
        ignored=("moderation", "quality"),
    ),
    Sent("go-openai with nothing set", {"prompt": "make it blue", "n": "0", "size": "", "response_format": ""}),
    Sent(
        "go-openai",
        {"prompt": "make it blue", "n": "2", "size": "1024x1024", "response_format": "b64_json"},
        *("image", 2, SQUARE),
    ),
    Sent("LiteLLM", {**NAMED, "n": "2", "seed": "7"}, "image[]", 2),
)


@pytest.mark.parametrize("sent", FORMS, ids=lambda sent: sent.client)
def test_a_clients_form_is_read(sent: Sent) -> None:
    form = form_of(picture(sent.picture), *(text(*item) for item in sent.fields.items()), settings=SETTINGS)
    assert (form.request.n, form.request.size, form.ignored) == (sent.n, sent.size, sent.ignored)


def test_a_form_that_asks_for_urls_gets_links() -> None:
    asked = {**NAMED, "model": "dall-e-2", "n": "1", "size": "1024x1024", "response_format": "url"}
    form = form_of(picture("image"), *(text(*item) for item in asked.items()), settings=SETTINGS)
    assert form.as_links
    assert not form_of(picture("image"), *(text(*item) for item in NAMED.items()), settings=SETTINGS).as_links
