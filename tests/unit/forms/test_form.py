"""A multipart body becomes an EditForm, or an error that names the field. The real parser runs."""

import asyncio
import gc
import os
from collections.abc import Iterable, Iterator

import numpy as np
import PIL.Image
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from serve_app.errors import (
    DeadlineExceeded,
    EditError,
    InvalidInput,
    ModelNotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
    UploadTooSlow,
)
from serve_app.forms.fields import EditFields
from serve_app.forms.form import parse
from serve_app.forms.memory import MemoryLimiter, Reservation
from serve_app.images.geometry import Size
from serve_app.settings import AppSettings, LimitSettings
from tests.pictures import file_of, half_a_jpeg, one_bit_png, photo, png
from tests.uploads import MIB, PICTURE, PROMPT, SETTINGS, Part, Upload, body_of, form_of, levels, picture, text


def refusal(*parts: Part, kind: type[EditError] = InvalidInput, settings: AppSettings = SETTINGS) -> EditError:
    with pytest.raises(EditError) as caught:
        form_of(*parts, settings=settings)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000, 10**6])
def test_every_field_arrives_however_the_body_is_cut(chunk_bytes: int) -> None:
    fields = {
        "prompt": "天空变蓝 ☁",
        "negative_prompt": "blurry",
        "n": "2",
        "size": "640x480",
        "num_inference_steps": "30",
        "guidance_scale": "2.5",
        "true_cfg_scale": "2.50",
        "seed": "7",
        "output_format": "jpeg",
        "output_compression": "80",
        "response_format": "b64_json",
        "stream": "False",
        "partial_images": "0",
        "model": "gpt-image-1",
        "user": "ann\r\nb",
        "quality": "auto",
        "background": "opaque",
        "moderation": "auto",
        "input_fidelity": "low",
    }
    form = form_of(*(text(*item) for item in fields.items()), picture(value=3), chunk_bytes=chunk_bytes)
    edit = form.request
    assert (edit.prompt, edit.negative_prompt, edit.n, edit.size) == ("天空变蓝 ☁", "blurry", 2, Size(640, 480))
    assert (edit.num_inference_steps, edit.guidance_scale, edit.seed) == (30, 2.5, 7)
    assert (form.output_format, form.output_compression, form.user) == ("jpeg", 80, "annb")
    assert levels(form) == [3]


@pytest.mark.parametrize("value", ["true", "True"])
def test_a_stream_may_have_previews(value: str) -> None:
    form = form_of(PROMPT, PICTURE, text("stream", value), text("partial_images", "3"))
    assert (form.stream, form.request.partial_images) == (True, 3)
    assert not form_of(PROMPT, PICTURE, text("stream", "false"), text("partial_images", "0")).stream
    error = refusal(PROMPT, PICTURE, text("stream", "true"), text("partial_images", "4"))
    assert error.param == "partial_images"


def test_defaults_are_those_of_the_contract() -> None:
    form = form_of(PROMPT, PICTURE)
    edit = form.request
    assert (edit.negative_prompt, edit.n, edit.size, edit.num_inference_steps, edit.guidance_scale) == (
        *(" ", 1, None, None, None),
    )
    assert (form.output_format, form.output_compression, form.user) == ("png", 100, None)
    assert form_of(PROMPT, PICTURE).request.seed != edit.seed
    assert edit.fit == "cover"
    assert form_of(PROMPT, PICTURE, text("size", "auto")).request.size is None


def test_the_size_of_the_original_and_the_fit_arrive() -> None:
    assert form_of(PROMPT, PICTURE, text("size", "original")).request.size == "original"
    edit = form_of(PROMPT, PICTURE, text("fit", "free"), text("size", "96x96")).request
    assert (edit.fit, edit.size) == ("free", Size(96, 96))
    error = refusal(PROMPT, PICTURE, text("fit", "free"))
    assert (error.param, "needs a size of WIDTHxHEIGHT" in error.message) == ("fit", True)


def test_outputs_that_would_be_too_large_are_refused_before_any_picture_is_decoded() -> None:
    broken = ("images", ("a.jpg", half_a_jpeg()))
    settings = AppSettings(limits=LimitSettings(max_original_pixels=2 * 64 * 64))
    original = text("size", "original")
    assert "damaged" in refusal(PROMPT, broken, original, text("n", "2"), settings=settings).message
    error = refusal(PROMPT, broken, original, text("n", "3"), settings=settings)
    assert (error.param, "more than 8192" in error.message) == ("size", True)
    wide = (PROMPT, ("images", ("a.png", one_bit_png(17_000, 3000))), original)
    unbound = AppSettings(limits=LimitSettings(max_image_pixels=10**8))
    error = refusal(*wide, text("output_format", "webp"), settings=unbound)
    assert (error.param, "17000x3000" in error.message) == ("size", True)


def test_outputs_of_the_original_size_are_reserved_beside_the_pictures() -> None:
    async def others_wait(*parts: Part) -> bool:
        """Whether one more pixel has to wait while the edit is open."""
        limiter = MemoryLimiter(LimitSettings(max_decoding_pixels=4 * 64))
        body, content_type = body_of([PROMPT, PICTURE, *parts])
        upload = Upload([body], content_type)
        await parse(Request(upload.scope, upload.receive), SETTINGS, reservation=Reservation(limiter))
        other = asyncio.create_task(limiter.reserve_pixels(1))
        await asyncio.sleep(0)
        return not other.done()

    assert not asyncio.run(others_wait(text("n", "3")))
    assert not asyncio.run(others_wait(text("n", "2"), text("size", "original")))
    assert asyncio.run(others_wait(text("n", "3"), text("size", "original")))


OPTIONAL = sorted(set(EditFields.model_fields) - {"prompt"})


@pytest.mark.parametrize("names", [OPTIONAL, *([name] for name in OPTIONAL)], ids=lambda names: "+".join(names)[:20])
def test_a_field_left_empty_is_a_field_left_out(names: list[str]) -> None:
    empty = form_of(PROMPT, PICTURE, *(text(name, "") for name in names))
    left_out = form_of(PROMPT, PICTURE)
    # Its seed is random.
    but = {"images", "seed"}
    assert empty.request.model_dump(exclude=but) == left_out.request.model_dump(exclude=but)
    for name in ("output_format", "output_compression", "user", "stream"):
        assert getattr(empty, name) == getattr(left_out, name)


def test_a_batch_keeps_its_order() -> None:
    assert levels(form_of(*(picture(value=v) for v in (9, 4, 200)), PROMPT)) == [9, 4, 200]
    assert levels(form_of(*(picture("images[]", v) for v in (9, 4, 200)), PROMPT)) == [9, 4, 200]


@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]"])
def test_one_picture_goes_by_any_name(name: str) -> None:
    assert levels(form_of(picture(name, 5), PROMPT)) == [5]


@pytest.mark.parametrize("names", [("image", "images"), ("images", "image[]")])
def test_names_of_both_kinds_are_not_mixed(names: tuple[str, str]) -> None:
    error = refusal(PROMPT, *(picture(name) for name in names))
    assert error.param == names[1]
    assert "cannot be mixed" in error.message


def test_no_picture() -> None:
    error = refusal(PROMPT)
    assert (error.message, error.param) == ("At least one image is required", "images")


def test_a_file_input_left_empty_is_no_picture() -> None:
    empty = b'--b\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n\r\n'
    prompt = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
    with pytest.raises(InvalidInput, match="At least one image is required"):
        Upload([empty + prompt], "multipart/form-data; boundary=b").parse()


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "the file is empty"), (b"hello", "not a JPEG, PNG"), (half_a_jpeg(), "the file is damaged or incomplete")],
)
def test_an_undecodable_picture_is_named_by_its_index(data: bytes, reason: str) -> None:
    error = refusal(PROMPT, PICTURE, ("images", ("notes.png", data, "image/png")))
    assert error.message.startswith(f"Invalid image format at index 1: {reason}")
    assert error.param == "images"


def test_seventeen_pictures_are_refused_before_the_rest_is_read() -> None:
    body, content_type = body_of([PROMPT, *[PICTURE] * 1000])
    upload = Upload([body[i : i + 500] for i in range(0, len(body), 500)], content_type)
    with pytest.raises(InvalidInput, match="At most 16 images are allowed") as caught:
        upload.parse()
    assert caught.value.param == "images"
    assert upload.taken_bytes < len(body) / 20
    assert len(form_of(PROMPT, *[PICTURE] * 16).request.images) == 16


def test_pictures_times_variants_is_bounded() -> None:
    assert refusal(PROMPT, *[PICTURE] * 7, text("n", "10")).param == "n"


@pytest.mark.parametrize("name", ["n", "num_inference_steps", "seed", "output_compression", "partial_images"])
@pytest.mark.parametrize(
    "value", [" ", "abc", "1.5", "1e1", "٣", "1_0", " 5 ", "+5", "inf", "nan", "0x1", "5\n", "9" * 5000]
)
def test_whole_numbers_are_ascii_digits(name: str, value: str) -> None:
    error = refusal(PROMPT, PICTURE, text("output_format", "jpeg"), text(name, value))
    assert error.param == name
    assert name in error.message
    assert len(error.message) < 150


@pytest.mark.parametrize("name", ["guidance_scale", "true_cfg_scale"])
@pytest.mark.parametrize("value", [" ", "abc", ".", "1e1", "٣", "1_0", " 5 ", "inf", "nan", "-inf", "4,0", "0x1p3"])
def test_decimals_are_plain(name: str, value: str) -> None:
    assert refusal(PROMPT, PICTURE, text(name, value)).param == name


@pytest.mark.parametrize(("value", "scale"), [("4", 4.0), ("4.", 4.0), ("4.25", 4.25), ("20", 20.0), ("1", 1.0)])
def test_guidance_goes_by_both_names(value: str, scale: float) -> None:
    assert form_of(PROMPT, PICTURE, text("true_cfg_scale", value)).request.guidance_scale == scale
    assert form_of(PROMPT, PICTURE, text("guidance_scale", value)).request.guidance_scale == scale


def test_a_guidance_is_refused_by_the_name_it_came_under() -> None:
    error = refusal(PROMPT, PICTURE, text("true_cfg_scale", "0.5"))
    assert error.param == "true_cfg_scale"
    assert error.message.startswith("true_cfg_scale: ")


def test_two_different_guidances_are_refused() -> None:
    error = refusal(PROMPT, PICTURE, text("true_cfg_scale", "4"), text("guidance_scale", "5"))
    assert error.param == "true_cfg_scale"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("n", "0", "from 1 to 10, not 0"),
        ("n", "11", "from 1 to 10, not 11"),
        ("n", "-1", "n"),
        ("size", "0x0", "WIDTHxHEIGHT"),
        ("size", " ", "WIDTHxHEIGHT"),
        ("size", "9000x100", "aspect ratio above 8:1"),
        ("fit", "contain", "cover or free, not 'contain'"),
        ("seed", "-1", "if omitted: a random seed"),
        ("seed", str(2**53), "seed"),
        ("num_inference_steps", "0", "num_inference_steps"),
        ("num_inference_steps", "151", "num_inference_steps"),
        ("guidance_scale", "0.5", "guidance_scale"),
        ("guidance_scale", "20.5", "guidance_scale"),
        ("negative_prompt", "x" * 4001, "4000 characters"),
        ("output_format", "gif", "png, jpeg or webp"),
        ("output_format", "PNG", "png, jpeg or webp"),
        ("output_format", " ", "png, jpeg or webp"),
        ("output_compression", "101", "from 0 to 100"),
        ("output_compression", "80", "png is lossless"),
        ("response_format", "file", "b64_json or url"),
        ("response_format", " ", "b64_json"),
        ("stream", "maybe", "true or false"),
        ("stream", "fal\u017fe", "true or false"),
        ("stream", " ", "true or false"),
        ("partial_images", "2", "send stream=true"),
        ("user", "x" * 257, "256 characters"),
        ("quality", "best", "num_inference_steps"),
        ("background", "white", "opaque"),
        ("moderation", "none", "auto or low"),
        ("input_fidelity", "medium", "low or high"),
        ("steps", "20", "Unknown field"),
        ("num_inference_step", "20", "did you mean num_inference_steps?"),
        ("prompts", "x", "did you mean prompt?"),
        ("mask", "x", "must be a file, not text"),
    ],
)
def test_values_that_cannot_be_honoured_are_refused_by_name(name: str, value: str, hint: str) -> None:
    error = refusal(PROMPT, PICTURE, text(name, value))
    assert error.param == name
    assert hint in error.message


@pytest.mark.parametrize("values", [("0", "", ""), ("0", "640x480", ""), ("0", "", "b64_json")])
def test_zero_variants_are_one_where_go_openai_writes_what_was_left_out(values: tuple[str, str, str]) -> None:
    fields = zip(("n", "size", "response_format"), values, strict=True)
    form = form_of(picture("image"), PROMPT, *(text(*field) for field in fields))
    assert (form.request.n, form.request.size) == (1, Size(640, 480) if values[1] else None)


def test_zero_variants_are_an_error_anywhere_else() -> None:
    said = [text("size", "640x480"), text("response_format", "b64_json")]
    for others in ([], said, [text("quality", "")]):
        error = refusal(PROMPT, PICTURE, text("n", "0"), *others)
        assert (error.message[:27], error.param) == ("n: must be from 1 to 10, no", "n")
    assert refusal(PROMPT, PICTURE, text("n", "00"), text("size", "")).param == "n"


def test_an_unknown_name_is_cut_short() -> None:
    error = refusal(PROMPT, PICTURE, text("x" * 500, "1"))
    assert error.param == "x" * 64
    assert len(error.message) < 150


@pytest.mark.parametrize(("name", "value"), [("n", "1"), ("seed", "1"), ("stream", "false"), ("quality", "auto")])
def test_a_field_of_one_value_comes_once(name: str, value: str) -> None:
    error = refusal(PROMPT, PICTURE, text(name, value), text(name, value))
    assert (error.message, error.param) == (f"{name} is given more than once", name)


@pytest.mark.parametrize("name", ["images", "image", "image[]", "images[]"])
def test_a_picture_field_takes_no_text(name: str) -> None:
    error = refusal(PROMPT, PICTURE, text(name, "photo.png"))
    assert error.param == name
    assert "must be a file" in error.message


@pytest.mark.parametrize("name", ["n", "prompt", "model"])
def test_a_text_field_takes_no_file(name: str) -> None:
    error = refusal(PICTURE, picture(name))
    assert error.param == name
    assert "must be text" in error.message


def test_prompts_come_once_or_once_for_each_picture() -> None:
    three = [picture(value=v) for v in (1, 2, 3)]
    assert form_of(PROMPT, *three).request.prompts == ("make it blue",) * 3
    each = form_of(text("prompt", "a"), three[0], text("prompt", "b"), *three[1:], text("prompt[]", "c"))
    assert each.request.prompts == ("a", "b", "c")
    error = refusal(text("prompt", "a"), text("prompt", "b"), *three)
    assert error.param == "prompt"
    assert "2 texts for 3 images" in error.message
    assert refusal(*[PROMPT] * 17, PICTURE).param == "prompt"


def test_an_empty_prompt_among_others_is_not_left_out() -> None:
    # Otherwise the other prompt would hold for both pictures.
    error = refusal(text("prompt", "a"), text("prompt", ""), picture(value=1), picture(value=2))
    assert (error.message, error.param) == ("prompt: must not be empty", "prompt")


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 4001, "a <|image_pad|> b"])
def test_a_prompt_must_say_something(prompt: str) -> None:
    assert refusal(text("prompt", prompt), PICTURE).param == "prompt"


def test_a_prompt_is_required() -> None:
    assert refusal(PICTURE).param == "prompt"


def test_a_prompt_that_is_not_utf_8_is_refused_and_not_guessed() -> None:
    error = refusal(PICTURE, text("prompt", "天空变蓝".encode("gbk")))
    assert (error.message, error.param) == ("prompt is not UTF-8 text", "prompt")


def test_another_model_is_not_found() -> None:
    error = refusal(PROMPT, PICTURE, text("model", "dall-e-2"), kind=ModelNotFound)
    assert error.param == "model"
    assert "Qwen-Image-Edit" in error.message
    for name in ("Qwen-Image-Edit", ""):
        assert form_of(PROMPT, PICTURE, text("model", name)).request.n == 1


def test_bad_fields_are_refused_before_pictures_are_decoded() -> None:
    assert refusal(text("n", "0"), PROMPT, ("images", ("a.png", b"garbage"))).param == "n"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "text/json", ""])
def test_only_multipart_and_json_are_read(content_type: str) -> None:
    upload = Upload([b"{}"], content_type)
    with pytest.raises(UnsupportedMediaType, match="multipart/form-data or application/json"):
        upload.parse()
    assert upload.taken_bytes == 0


def test_a_packed_body_is_refused() -> None:
    upload = Upload([b"\x1f\x8b"], "application/json", headers=[(b"content-encoding", b"gzip")])
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding: gzip is not read; send it uncompressed"):
        upload.parse()
    assert upload.taken_bytes == 0


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_missing_boundary_is_said(content_type: str) -> None:
    with pytest.raises(InvalidInput, match="no boundary"):
        Upload([b"x"], content_type).parse()


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        b"--other\r\n\r\n",
        b"--b\r\n\r\nno headers\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; filename="x"\r\n\r\nx\r\n--b--\r\n',
        b"--b\r\n" + b"x" * 10_000,
    ],
)
def test_malformed_multipart_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="The multipart body cannot be read"):
        Upload([body], "multipart/form-data; boundary=b").parse()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_body_that_was_cut_off_is_refused(share: float) -> None:
    body, content_type = body_of([PROMPT, PICTURE, text("n", "2")])
    with pytest.raises(InvalidInput, match="cut off"):
        Upload([body[: int(len(body) * share)]], content_type).parse()


def test_an_epilogue_is_ignored() -> None:
    body, content_type = body_of([PROMPT, PICTURE])
    assert levels(Upload([body + b"\r\nepilogue"], content_type).parse()) == [0]


def endless(chunk_bytes: int = 64 * 1024, total_bytes: int = 200 * MIB) -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    chunk = b"\0" * chunk_bytes
    for _ in range(total_bytes // chunk_bytes):
        yield chunk


def test_a_chunked_body_is_refused_once_it_passes_the_limit() -> None:
    limits = LimitSettings(max_file_bytes=4 * MIB, max_request_bytes=4 * MIB)
    upload = Upload(endless(), "multipart/form-data; boundary=b")
    with pytest.raises(PayloadTooLarge, match=f"The request is larger than {4 * MIB} bytes"):
        upload.parse(AppSettings(limits=limits))
    assert 4 * MIB < upload.taken_bytes <= 4 * MIB + 64 * 1024 + 200


def test_a_file_is_refused_once_it_passes_its_limit() -> None:
    limits = LimitSettings(max_file_bytes=2 * MIB)
    first = b'--b\r\nContent-Disposition: form-data; name="images"; filename="0"\r\n\r\nx\r\n'
    upload = Upload([first, *endless()], "multipart/form-data; boundary=b")
    with pytest.raises(PayloadTooLarge, match=f"Image at index 1 is larger than {2 * MIB} bytes") as caught:
        upload.parse(AppSettings(limits=limits))
    assert caught.value.param == "images"
    assert upload.taken_bytes <= 2 * MIB + 64 * 1024 + 300


def test_the_limit_of_a_file_counts_each_file_alone() -> None:
    limits = LimitSettings(max_file_bytes=len(png(0, 8, 8)))
    assert len(form_of(PROMPT, *[PICTURE] * 3, settings=AppSettings(limits=limits)).request.images) == 3


def test_small_parts_count_towards_the_request_too() -> None:
    limits = LimitSettings(max_file_bytes=1000, max_request_bytes=1000)
    refusal(PROMPT, *[PICTURE] * 10, kind=PayloadTooLarge, settings=AppSettings(limits=limits))


@pytest.mark.parametrize("length", [b"200000000", b"9" * 40])
def test_an_announced_body_over_the_limit_is_refused_unread(length: bytes) -> None:
    upload = Upload(endless(), "multipart/form-data; boundary=b", [(b"content-length", length)])
    with pytest.raises(PayloadTooLarge):
        upload.parse()
    assert upload.taken_bytes == 0


def test_long_texts_are_refused_while_read() -> None:
    error = refusal(PICTURE, text("prompt", "x" * 70_000), kind=PayloadTooLarge)
    assert error.param == "prompt"


def test_a_client_that_disconnects_is_no_bad_body() -> None:
    body, content_type = body_of([PROMPT, PICTURE])
    with pytest.raises(ClientDisconnect):
        Upload([body[:200]], content_type, disconnects=True).parse()


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def large_file() -> Part:
    """Return a form large enough for the parser to spool it to disk."""
    return ("images", ("a.bmp", np.random.default_rng(0).bytes(3 * MIB), "image/bmp"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
@pytest.mark.parametrize("share", [1, 0.6])
@pytest.mark.parametrize("disconnects", [False, True])
def test_temporary_files_are_closed_however_it_ends(share: float, disconnects: bool) -> None:
    body, content_type = body_of([PROMPT, large_file(), large_file(), text("n", "0")])
    body = body[: int(len(body) * share)]
    chunks = [body[i : i + 65536] for i in range(0, len(body), 65536)]
    kept = []

    async def watched() -> int:
        upload = Upload(chunks, content_type, disconnects=disconnects)
        with pytest.raises((InvalidInput, ClientDisconnect)) as caught:
            await parse(Request(upload.scope, upload.receive), SETTINGS)
        kept.append(caught)  # keeps the frames, and with them every file that was not closed, alive
        return open_files()

    async def before() -> int:
        return open_files()

    assert asyncio.run(watched()) == asyncio.run(before())


class SlowUpload(Upload):
    """An upload that hands out each chunk after a pause."""

    def __init__(self, chunks: Iterable[bytes], content_type: str, pause_s: float) -> None:
        super().__init__(chunks, content_type)
        self.pause_s = pause_s

    async def receive(self) -> Message:
        await asyncio.sleep(self.pause_s)
        return await super().receive()


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=b", "application/json"])
@pytest.mark.parametrize(("chunks", "pause_s"), [([], 3600), ([b"\r"] * 1000, 0.01)])
def test_an_upload_that_is_too_slow_is_given_up(content_type: str, chunks: list[bytes], pause_s: float) -> None:
    upload = SlowUpload(chunks, content_type, pause_s)
    limits = LimitSettings(upload_grace_s=0.2, min_upload_bytes_per_s=1000)
    with pytest.raises(UploadTooSlow, match="less than 1000 bytes a second"):
        upload.parse(AppSettings(limits=limits))
    assert upload.taken_bytes < 100


def test_the_rate_is_that_of_the_whole_upload() -> None:
    body, content_type = body_of([PROMPT, ("images", ("a.bmp", bmp_of_noise(), "image/bmp"))])
    # The second half arrives after the grace, and long before the time that the first half's bytes allow.
    limits = LimitSettings(upload_grace_s=1, min_upload_bytes_per_s=len(body) / 60)
    upload = SlowUpload([body[: len(body) // 2], body[len(body) // 2 :]], content_type, pause_s=0.6)
    assert len(upload.parse(AppSettings(limits=limits)).request.images) == 1


def bmp_of_noise() -> bytes:
    return file_of(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "BMP")


@pytest.mark.parametrize("digits", [18, 19, 4301, 100_000])
def test_an_announced_length_of_any_number_of_digits_is_refused_unread(digits: int) -> None:
    upload = Upload(endless(), "multipart/form-data; boundary=b", [(b"content-length", b"9" * digits)])
    with pytest.raises(PayloadTooLarge):
        upload.parse()
    assert upload.taken_bytes == 0


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "utf-7", "rot13", "ISO-8859-1", "nonsense"])
def test_the_charset_of_a_form_changes_nothing(charset: str) -> None:
    body, content_type = body_of([text("prompt", "天空变蓝"), PICTURE])
    assert Upload([body], f"{content_type}; charset={charset}").parse().request.prompts == ("天空变蓝",)


def test_a_request_waits_until_there_is_room_for_its_pixels() -> None:
    body, content_type = body_of([PROMPT, PICTURE, PICTURE])
    limits = LimitSettings(request_timeout_s=0.3)

    async def steps() -> None:
        limiter = MemoryLimiter(LimitSettings(max_decoding_pixels=3 * 64))
        await limiter.reserve_pixels(64 + 1)
        upload = Upload([body], content_type)
        with pytest.raises(DeadlineExceeded, match="no room"):
            await parse(
                Request(upload.scope, upload.receive), AppSettings(limits=limits), reservation=Reservation(limiter)
            )
        limiter.release_pixels(1)
        upload = Upload([body], content_type)
        form = await parse(Request(upload.scope, upload.receive), SETTINGS, reservation=Reservation(limiter))
        assert len(form.request.images) == 2

    asyncio.run(steps())


def test_a_large_picture_travels_small_and_keeps_its_size() -> None:
    settings = AppSettings(limits=LimitSettings(shrink_above_pixels=2**16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    lying = file_of(PIL.Image.fromarray(photo(1200, 900)), "JPEG", exif=exif)
    request = form_of(PROMPT, ("images", ("a.jpg", lying)), PICTURE, settings=settings).request
    assert request.original_sizes == (Size(900, 1200), Size(8, 8))
    assert [pixels.shape for pixels in request.images] == [(295, 221, 3), (8, 8, 3)]
