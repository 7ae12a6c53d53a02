"""A JSON body becomes the same EditForm as a multipart body, or an error that names the field."""

import base64
import json
from typing import Any

import pytest

from serve_app.errors import EditError, InvalidInput, ModelNotFound, PayloadTooLarge
from serve_app.forms.form import EditForm
from serve_app.images.geometry import Size
from serve_app.settings import AppSettings, LimitSettings
from tests.pictures import png
from tests.uploads import MIB, SETTINGS, Upload, form_of, levels, picture, text


def b64(value: int = 0) -> str:
    return base64.b64encode(png(value, 8, 8)).decode()


def data_url(value: int = 0) -> str:
    return f"data:image/png;base64,{b64(value)}"


def parse_text(body: bytes | str, settings: AppSettings = SETTINGS, content_type: str = "application/json") -> EditForm:
    raw = body.encode() if isinstance(body, str) else body
    return Upload([raw[i : i + 1000] for i in range(0, len(raw), 1000)], content_type).parse(settings)


def form(settings: AppSettings = SETTINGS, **fields: Any) -> EditForm:
    return parse_text(json.dumps({"prompt": "make it blue", "images": [b64()], **fields}), settings)


def refusal_of_text(body: bytes | str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse_text(body)
    return caught.value


def refusal(kind: type[EditError] = InvalidInput, settings: AppSettings = SETTINGS, **fields: Any) -> EditError:
    with pytest.raises(EditError) as caught:
        form(settings, **fields)
    assert type(caught.value) is kind
    return caught.value


def test_every_field_arrives() -> None:
    fields: dict[str, Any] = {
        "prompt": "天空变蓝 ☁",
        "negative_prompt": "",
        "n": 2,
        "size": "640x480",
        "num_inference_steps": 30,
        "guidance_scale": 2.5,
        "true_cfg_scale": 2.5,
        "seed": 2**53 - 1,
        "output_format": "jpeg",
        "output_compression": 80,
        "response_format": "b64_json",
        "stream": True,
        "partial_images": 3,
        "model": "gpt-image-1",
        "user": "ann\r\nb",
        "quality": "auto",
        "background": "opaque",
        "moderation": "auto",
        "input_fidelity": "low",
    }
    for found in (form(**fields), parse_text(json.dumps({**fields, "images": [b64()]}, ensure_ascii=False))):
        edit = found.request
        assert (edit.prompt, edit.negative_prompt, edit.n, edit.size) == ("天空变蓝 ☁", "", 2, Size(640, 480))
        assert (edit.num_inference_steps, edit.guidance_scale, edit.seed) == (30, 2.5, 2**53 - 1)
        assert (found.output_format, found.output_compression, found.user) == ("jpeg", 80, "annb")
        assert (found.stream, edit.partial_images) == (True, 3)


def test_defaults_are_those_of_the_form_and_null_is_left_out() -> None:
    names = ["negative_prompt", "n", "size", "num_inference_steps", "guidance_scale", "output_format", "stream", "mask"]
    left_out: dict[str, Any] = dict.fromkeys(names)
    same = form_of(text("prompt", "make it blue"), picture(), text("seed", "1"))
    for found in (form(seed=1), form(seed=1, image=None, **left_out)):
        assert found.request.model_dump(exclude={"images"}) == same.request.model_dump(exclude={"images"})
        assert (found.output_format, found.output_compression, found.user, found.stream) == ("png", 100, None, False)


def test_whole_numbers_may_be_written_as_decimals() -> None:
    found = form(n=2.0, guidance_scale=4)
    assert (found.request.n, found.request.guidance_scale) == (2, 4.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"images": [b64(9), data_url(4), b64(200)]},
        {"images[]": [b64(9), b64(4), b64(200)], "images": None},
        {"images": ["\n".join(b64(v)[i : i + 76] for i in range(0, len(b64(v)), 76)) for v in (9, 4, 200)]},
        {"images": [f"DATA:;Base64,{b64(v)}" for v in (9, 4, 200)]},
    ],
)
def test_a_batch_keeps_its_order(fields: dict[str, Any]) -> None:
    assert levels(form(**fields)) == [9, 4, 200]


@pytest.mark.parametrize("name", ["images", "images[]", "image", "image[]"])
@pytest.mark.parametrize(
    "value",
    [
        *(b64(5), [b64(5)], data_url(5), [data_url(5)], {"image_url": data_url(5)}, [{"image_url": b64(5)}]),
        # xAI's, and those of a chat.
        *({"url": data_url(5)}, {"type": "image_url", "url": data_url(5)}, [{"url": data_url(5), "type": "image_url"}]),
        *({"image_url": {"url": data_url(5)}}, [{"type": "image_url", "image_url": {"url": data_url(5)}}]),
        {"type": "image_url", "image_url": data_url(5)},
    ],
)
def test_one_picture_goes_by_any_name_and_shape(name: str, value: Any) -> None:
    assert levels(form(**{"images": None, name: value})) == [5]


def test_names_of_both_kinds_are_not_mixed() -> None:
    error = refusal(image=b64())
    assert error.param == "image"
    assert "cannot be mixed" in error.message


@pytest.mark.parametrize("value", ["https://example.com/a.png", "HTTP://host/a", "file:///etc/passwd", "s3://a/b"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: v,
        lambda v: [v],
        lambda v: [{"image_url": v}],
        lambda v: {"url": v},
        lambda v: {"image_url": {"url": v}},
    ],
)
def test_no_url_is_fetched(value: str, wrap: Any) -> None:
    error = refusal(images=wrap(value))
    assert error.param == "images"
    assert "no URL is fetched" in error.message


@pytest.mark.parametrize(
    "value",
    [
        *(5, True, 1.5, [5], [None], [[b64()]], {}, {"file_id": "f"}, {"url": 5}, {"url": {"url": b64()}}),
        *({"type": "image_url"}, {"type": "image_url", "type2": b64()}, {"type": "file", "url": b64()}),
        *({"image_url": {"image_url": b64()}}, {"image_url": {"url": b64(), "detail": "high"}}),
        *({"image_url": b64(), "url": b64()}, {"type": "image_url", "image_url": {"type": "image_url", "url": b64()}}),
    ],
)
def test_a_picture_is_text(value: Any) -> None:
    error = refusal(images=value)
    assert error.param == "images"
    assert "must be base64 text" in error.message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the file is empty"),
        ("photo.png", "neither base64"),
        ("/etc/passwd", "neither base64"),
        (b64()[:-1], "neither base64"),
        ("data:image/png;base64", "neither base64"),
        ("data:image/png,%89PNG", "neither base64"),
        ("data:image/png,AAAA", "neither base64"),
        ("图", "neither base64"),
        ("\ud800", "neither base64"),
        (base64.b64encode(b"hello").decode(), "not a JPEG, PNG"),
    ],
)
def test_an_undecodable_picture_is_named_by_its_index(value: str, reason: str) -> None:
    error = refusal(images=[b64(), value])
    assert error.message.startswith(f"Invalid image format at index 1: {reason}")
    assert error.param == "images"


@pytest.mark.parametrize("value", [None, []])
def test_no_picture(value: Any) -> None:
    error = refusal(images=value)
    assert (error.message, error.param) == ("At least one image is required", "images")


@pytest.mark.parametrize("name", ["image", "images[]"])
def test_an_empty_list_beside_pictures_is_not_passed_over(name: str) -> None:
    fields: dict[str, Any] = {name: []}
    assert refusal(**fields).param == name


def test_pictures_are_bounded() -> None:
    assert refusal(images=[b64()] * 17).message == "At most 16 images are allowed"
    assert len(form(images=[b64()] * 16).request.images) == 16


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("n", "2", "a whole number, not text"),
        ("n", True, "a whole number, not true or false"),
        ("n", 1.5, "a whole number, not a number"),
        ("n", [1], "a whole number, not a list"),
        ("n", 0, "n"),
        ("n", 10**30, "from 1 to 10"),
        ("num_inference_steps", "20", "a whole number"),
        ("partial_images", "1", "a whole number"),
        ("partial_images", 1, "send stream=true"),
        ("output_compression", "80", "a whole number"),
        ("guidance_scale", "4", "a number, not text"),
        ("guidance_scale", 1e-9, "guidance_scale"),
        ("guidance_scale", 1e99, "guidance_scale"),
        ("seed", -1, "if omitted: a random seed"),
        ("seed", "7", "a whole number"),
        ("stream", "true", "true or false, not text"),
        ("stream", 1, "true or false"),
        ("prompt", 5, "text, not a whole number"),
        ("prompt", [5], "text"),
        ("prompt", {"a": 1}, "an object"),
        ("prompt", [["a"]], "a list"),
        ("prompt", "", "empty"),
        ("prompt", [], "required"),
        ("prompt", None, "required"),
        ("prompt", "\ud800", "not UTF-8"),
        ("prompt", ["a"] * 17, "more than 16 times"),
        ("prompt[]", 5, "text, not a whole number"),
        ("user", 5, "text"),
        ("user", ["a"], "text"),
        ("size", 512, "text"),
        ("size", {"width": 8, "height": 8}, "text, not an object"),
        ("size", "9000x100", "aspect ratio above 8:1"),
        ("quality", "best", "num_inference_steps"),
        ("response_format", "file", "b64_json or url"),
        ("mask", 7, "mask must be base64 text, or a list of them, not a whole number"),
        ("num_inference_step", 20, "did you mean num_inference_steps?"),
        ("num_inference_step", None, "Unknown field"),
        ("extra_body", {"seed": 1}, "Unknown field"),
    ],
)
def test_values_that_cannot_be_honoured_are_refused_by_name(name: str, value: Any, hint: str) -> None:
    error = refusal(**{name: value})
    assert error.param == name
    assert hint in error.message
    assert len(error.message) < 200


def test_prompts_come_once_or_once_for_each_picture() -> None:
    three = [b64(v) for v in (1, 2, 3)]
    assert form(images=three, prompt=["a", "b", "c"]).request.prompts == ("a", "b", "c")
    assert form(images=three, prompt=["a"]).request.prompts == ("a",) * 3
    assert "2 texts for 3 images" in refusal(images=three, prompt=["a", "b"]).message


def test_an_empty_model_is_no_model_named() -> None:
    assert form(model="").request.n == 1


@pytest.mark.parametrize("name", ["n", "size", "seed", "quality", "response_format", "mask"])
def test_an_empty_text_leaves_no_field_out_where_null_does(name: str) -> None:
    fields: dict[str, Any] = {name: ""}
    assert refusal(**fields).param == name


def test_another_model_is_not_found() -> None:
    assert refusal(ModelNotFound, model="dall-e-2").param == "model"


@pytest.mark.parametrize("name", ["n", "prompt", "images", "nobody"])
def test_a_name_comes_once(name: str) -> None:
    error = refusal_of_text(f'{{"{name}": 1, "{name}": 1}}')
    assert (error.message, error.param) == (f"{name} is given more than once", name)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x",}',
        b"\xff",
        b'{"prompt": "\xd6\xd0"}',
        b"nothing",
        b'{"guidance_scale": NaN}',
        b'{"guidance_scale": -Infinity}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"n": ' + b"[" * 50_000 + b"}",
        b'{"a": ' * 20_000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    error = refusal_of_text(body)
    assert error.message.startswith("The JSON body cannot be read")
    assert error.param is None


@pytest.mark.parametrize("body", ["[]", '"x"', "5", "null", "true"])
def test_the_body_is_an_object(body: str) -> None:
    with pytest.raises(InvalidInput, match="must be an object, not"):
        parse_text(body)


def test_a_name_that_no_encoding_can_write_is_refused() -> None:
    error = refusal_of_text(r'{"\ud800": 1}')
    assert (error.message, error.param) == ("The name of a field is not UTF-8 text", None)


def test_a_body_that_would_swell_in_memory_is_refused() -> None:
    for many in (b"[],", b"{},", b"0,"):
        with pytest.raises(InvalidInput, match="more than 100000 values"):
            parse_text(b'{"prompt": [' + many * 100_000 + b"0]}")
    assert form(images=[b64()] * 16, prompt=["," * 4000] * 16).request.prompts == ("," * 4000,) * 16


def test_a_charset_may_be_named() -> None:
    body = json.dumps({"prompt": "x", "images": b64(7)})
    assert levels(parse_text(body, content_type="application/json; charset=utf-8")) == [7]
    assert levels(parse_text(body, content_type="Application/JSON")) == [7]


# --- limits -------------------------------------------------------------------------------------------------------


def test_a_body_is_refused_once_it_passes_the_limit() -> None:
    limits = LimitSettings(max_file_bytes=MIB, max_request_bytes=MIB)
    upload = Upload((b"A" * 65536 for _ in range(100)), "application/json")
    with pytest.raises(PayloadTooLarge, match=f"The request is larger than {MIB} bytes"):
        upload.parse(AppSettings(limits=limits))
    assert MIB < upload.taken_bytes <= MIB + 65536


def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    upload = Upload([b"{}"], "application/json", [(b"content-length", b"200000000")])
    with pytest.raises(PayloadTooLarge):
        upload.parse()
    assert upload.taken_bytes == 0


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("size", [100, 101, 102])
def test_the_limit_of_a_file_counts_its_bytes_not_its_text(prefix: str, size: int) -> None:
    value = prefix + base64.b64encode(b"x" * size).decode()
    small = AppSettings(limits=LimitSettings(max_file_bytes=size - 1))
    error = refusal(PayloadTooLarge, small, images=[b64()[:40], value])
    assert (error.message, error.param) == (f"Image at index 1 is larger than {size - 1} bytes", "images")
    exact = AppSettings(limits=LimitSettings(max_file_bytes=size))
    assert "not a JPEG" in refusal(settings=exact, images=[value]).message


def test_long_texts_are_refused() -> None:
    assert refusal(PayloadTooLarge, user="字" * 30_000).param == "user"
    assert "a whole number, not text" in refusal(n="9" * 70_000).message


def test_bad_fields_are_refused_before_pictures_are_decoded() -> None:
    assert refusal(n=0, images=["???"]).param == "n"
