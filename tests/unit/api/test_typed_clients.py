"""Answers and events against what typed clients require: the structs of async-openai as of 2026-11.

Serde ignores fields that a struct does not name, and refuses an answer in which one is missing or of another type.
"""

import asyncio
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.settings import AppSettings
from tests.editors import Gated, Inverter
from tests.http_calls import JobCaller, call, edit, events_of

U32 = Annotated[int, Field(ge=0, lt=2**32)]
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["standard", "hd", "high", "medium", "low", "auto"]


class Struct(BaseModel):
    model_config = ConfigDict(strict=True)


class InputTokensDetails(Struct):
    text_tokens: U32
    image_tokens: U32


class ImageGenUsage(Struct):
    input_tokens: U32
    total_tokens: U32
    output_tokens: U32
    input_tokens_details: InputTokensDetails


class Image(Struct):
    b64_json: str
    revised_prompt: str | None = None


class ImagesResponse(Struct):
    created: U32
    data: list[Image]
    background: Literal["transparent", "opaque"] | None = None
    output_format: OutputFormat | None = None
    size: str | None = None
    quality: Quality | None = None
    # Optional in Rust, but no answer of this server is without it.
    usage: ImageGenUsage


class Event(Struct):
    b64_json: str
    created_at: int
    size: str
    quality: Quality
    background: Literal["auto", "transparent", "opaque"]
    output_format: OutputFormat


class PartialImage(Event):
    type: Literal["image_edit.partial_image", "image_generation.partial_image"]
    partial_image_index: Annotated[int, Field(ge=0, lt=2**8)]


class Completed(Event):
    type: Literal["image_edit.completed", "image_generation.completed"]
    usage: ImageGenUsage


EVENT: TypeAdapter[PartialImage | Completed] = TypeAdapter(
    Annotated[PartialImage | Completed, Field(discriminator="type")]
)


@pytest.fixture
def app() -> Starlette:
    return create_app(Inverter(), AppSettings())


def test_an_answer_is_read(app: Starlette) -> None:
    answer = ImagesResponse.model_validate(edit(app, (1, 2), n="2", prompt="one two three").json())
    assert len(answer.data) == 4
    # The editor counts words, and rows and columns of pictures of 8 × 6.
    assert answer.usage.input_tokens_details == InputTokensDetails(text_tokens=6, image_tokens=12)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (18, 32, 50)


def test_the_pictures_of_a_stream_are_read(app: Starlette) -> None:
    events = [e for e in events_of(edit(app, stream="true", partial_images="1")) if "b64_json" in e]
    partial, completed = map(EVENT.validate_python, events)
    assert isinstance(partial, PartialImage)
    assert isinstance(completed, Completed)
    assert completed.usage.total_tokens == 15


def test_a_generation_is_read(app: Starlette) -> None:
    answer = call(app, "POST", "/v1/images/generations", json={"prompt": "one two", "n": 2, "size": "10x6"})
    assert ImagesResponse.model_validate(answer.json()).usage.input_tokens_details.image_tokens == 0
    body = {"prompt": "x", "stream": True, "partial_images": 1}
    events = [e for e in events_of(call(app, "POST", "/v1/images/generations", json=body)) if "b64_json" in e]
    partial, completed = map(EVENT.validate_python, events)
    assert (partial.type, completed.type) == ("image_generation.partial_image", "image_generation.completed")


def test_the_result_of_a_job_is_read() -> None:
    async def story() -> dict[str, Any]:
        editor = Gated()
        editor.gate.set()
        caller = JobCaller(editor)
        return await caller.until(await caller.start(), "succeeded")

    assert ImagesResponse.model_validate(asyncio.run(story())["result"]).usage.total_tokens == 15
