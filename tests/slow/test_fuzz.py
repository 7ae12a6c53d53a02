"""Random bodies, headers and pictures: each is answered, or refused with an error of the tree.

The end of the run says how many were tried. `make fuzz` tries more.
"""

import asyncio
import base64
import io
import itertools
import json
import random
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import PIL.Image
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from serve_app.api.app import create_app
from serve_app.decoding.pool import DecoderPool
from serve_app.errors import EditError, InvalidInput
from serve_app.forms.fields import EditFields, GenerationFields
from serve_app.forms.names import FIELDS, GENERATION_FIELDS
from serve_app.images.colour import srgb_profile
from serve_app.settings import AppSettings, CorsSettings, LimitSettings
from tests.editors import Inverter
from tests.fuzzing import ROUNDS, SEED, fuzz, tried
from tests.pictures import PHONE, file_of, photo, png
from tests.processes import decoder_processes
from tests.uploads import PICTURE, PROMPT, Upload, body_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# --- bodies -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(sorted(FIELDS | GENERATION_FIELDS)) | st.text(max_size=12)
WORDS = [
    "1",
    "0",
    "-1",
    "auto",
    "8x8",
    "true",
    "null",
    "1e999",
    "9" * 5000,
    "<|im_end|>",
    "b64_json",
    "Qwen-Image-Edit",
]
VALUES = st.sampled_from(WORDS) | st.text()
PICTURES = st.sampled_from([png(), png(9)[:40], b"", b"GIF89a"])
DISPOSITIONS = st.sampled_from(
    [
        *['form-data; name="{}"', 'form-data; name="{}"; filename="a.png"'] * 4,
        "form-data; name={}; filename*=UTF-8''a",
        'form-data; name="{}"; name="prompt"',
        'attachment; filename="a',
        "form-data",
        '\x00"{}";;;=',
    ]
)
HEADERS = st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=12)
TYPES = [
    *["multipart/form-data; boundary=b"] * 4,
    'multipart/form-data; boundary="b"; charset=undefined',
    "multipart/form-data; boundary=c; boundary=b",
    "multipart/form-data; boundary=" + "b" * 300,
]


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    disposition = draw(DISPOSITIONS).replace("{}", draw(NAMES))
    lines = [
        f"Content-Disposition: {disposition}",
        *(f"{name}: {value}" for name, value in draw(st.just({}) | HEADERS).items()),
    ]
    content = draw(VALUES.map(str.encode) | PICTURES | st.binary(max_size=100))
    return b"--b\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


@st.composite
def damaged(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """Draw a body with some bytes removed or inserted."""
    body = draw(bodies)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(body)))
        end = start + draw(st.integers(0, 30))
        body = (
            body[:start] + draw(st.sampled_from([b"", b"\r\n", b"--b--\r\n", b"\0", b'"', b"[", b"\xff"])) + body[end:]
        )
    return body


VALID = body_of([PROMPT, PICTURE])[0]
BOUNDARY = VALID[2:34]
FORMS = st.builds(
    lambda found, valid: b"".join(found) + (VALID.replace(BOUNDARY, b"b") if valid else b"--b--\r\n"),
    st.lists(parts(), max_size=4),
    st.booleans(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | VALUES | st.just("iVBORw0KGgo="),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
PNG = base64.b64encode(png()).decode()
OBJECTS = JSON | st.builds(
    lambda valid, fields: {**valid, **fields},
    st.sampled_from(
        [{}, {"prompt": "x"}, {"prompt": "x", "images": [PNG]}, {"prompt": ["x", "y"], "images": [PNG, PNG], "n": 2}]
    ),
    st.dictionaries(NAMES, JSON, max_size=3),
)


def parse(kind: str, upload: Upload, fields: type[EditFields] = EditFields) -> None:
    try:
        upload.parse(fields=fields)
        tried[f"{kind} taken"] += 1
    except ClientDisconnect:
        tried[f"{kind} left"] += 1
    except EditError as error:
        tried[f"{kind} refused"] += 1
        orjson.dumps([error.message, error.param])


def chunks(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


@fuzz(500)
@given(body=damaged(FORMS), content_type=st.sampled_from(TYPES), size=st.integers(1, 300), leaves=st.booleans())
def test_any_form_is_read_or_refused(body: bytes, content_type: str, size: int, leaves: bool) -> None:
    parse("forms", Upload(chunks(body, size), content_type, disconnects=leaves))
    parse("forms", Upload(chunks(body, size), content_type, disconnects=leaves), GenerationFields)


@fuzz(500)
@given(body=damaged(OBJECTS.map(lambda value: json.dumps(value).encode())))
def test_any_json_is_read_or_refused(body: bytes) -> None:
    parse("JSON bodies", Upload([body], "application/json"))
    parse("JSON bodies", Upload([body], "application/json"), GenerationFields)


# --- headers ------------------------------------------------------------------------------------------------------

# Text that reveals the inside of the server.
INSIDE = re.compile(rf'Traceback|File "|\.py\b|site-packages|object at 0x|{re.escape(socket.gethostname())}')
KNOWN = (
    *("content-type", "content-length", "transfer-encoding", "authorization", "x-request-id", "origin", "expect"),
    *("x-request-disconnect-disabled", "x-request-timeout-seconds", "access-control-request-method", "cookie", "host"),
)
# HTTP servers pass on no control characters.
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
HEADER_VALUES = TEXTS | st.sampled_from(
    [*TYPES, "application/json", "9" * 5000, "-1", "?1", "30", "Basic !!", "Bearer ", "https://lab.example"]
)
METHODS = st.sampled_from(["POST", "GET", "DELETE", "OPTIONS", "HEAD", "X"])
PATHS = (
    *(
        "/v1/images/edits",
        "/v1/images/generations",
        "/v1/jobs/x",
        "/v1/models",
        "/v1/models/x",
        "/health",
        "/",
        "/docs",
    ),
    *("/static/x", "/nope"),
)
PLACES = st.sampled_from(PATHS) | TEXTS.map("/v1/models/".__add__) | TEXTS.map("/v1/jobs/".__add__)


@pytest.fixture(scope="module")
def app() -> Starlette:
    return create_app(Inverter(), AppSettings(cors=CorsSettings(origins=("https://lab.example",))))


def ask(app: Starlette, scope: Scope, body: list[bytes]) -> tuple[int, bytes]:
    """Return the answer to a request that no client library would send."""
    upload, sent = Upload(body, ""), list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({**upload.scope, "root_path": "", **scope}, upload.receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@fuzz(500)
@given(
    target=st.just(("POST", PATHS[0])) | st.tuples(METHODS, PLACES),
    query=st.just(b"") | st.just(b"async=true") | st.binary(max_size=30),
    headers=st.lists(st.tuples(st.sampled_from(KNOWN), HEADER_VALUES), max_size=6),
)
def test_any_header_is_taken_or_refused(
    app: Starlette, target: tuple[str, str], query: bytes, headers: list[tuple[str, str]]
) -> None:
    method, path = target
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    body, content_type = body_of([PROMPT, PICTURE])
    for name, usual in ((b"content-type", content_type.encode()), (b"host", b"localhost")):
        if not any(sent == name for sent, _ in raw):
            raw.append((name, usual))
    scope = {"method": method, "path": path, "query_string": query, "headers": raw}
    status, answer = ask(app, scope, [body])
    tried[f"headers answered with {status}"] += 1
    assert status < 500
    if status >= 400 and method != "HEAD":
        assert set(orjson.loads(answer)) == {"detail", "error"}
        assert not INSIDE.search(answer.decode())


# --- pictures -----------------------------------------------------------------------------------------------------

# Small, so that a run tries many; larger pictures are refused earlier.
SMALL = LimitSettings(max_image_pixels=4_000_000, max_decoder_bytes=256 * 2**20, decode_timeout_s=10)
MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"],
    "AVIF": ["RGB", "RGBA"],
    "JXL": ["RGB", "RGBA", "L", "LA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"],
    "PPM": ["1", "L", "RGB", "I"],
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [
        {},
        {"progressive": True},
        {"subsampling": 0, "restart_marker_rows": 1},
        {"exif": PIL.Image.Exif().tobytes()},
    ],
    "PNG": [{}, {"compress_level": 0}, {"icc_profile": bytes(300)}, {"icc_profile": srgb_profile()}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}, {"interlace": 0}],
    "TIFF": [{"compression": name} for name in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma")],
}
EXTREMES = [bytes.fromhex(text) for text in ("00000000", "ffffffff", "7fffffff", "80000000", "00000001", "0000ffff")]


COLOURS = PIL.Image.fromarray(photo(40, 30))


def in_mode(mode: str) -> PIL.Image.Image:
    if mode == "LAB":  # Pillow converts to it only with a profile
        return PIL.Image.new("LAB", COLOURS.size, (128, 90, 150))
    return (COLOURS.convert("L") if mode in ("LA", "I;16", "I", "F") else COLOURS).convert(mode)


def seeds() -> Iterator[bytes]:
    """Yield valid files: every format that is read, in every mode that Pillow writes."""
    for file_format, modes in MODES.items():
        for mode, options in itertools.product(modes, OPTIONS.get(file_format, [{}])):
            yield file_of(in_mode(mode), file_format, **options)
    for compression in ("group3", "group4"):
        yield file_of(in_mode("1"), "TIFF", compression=compression)
    yield file_of(COLOURS, "TIFF", compression="jpeg")
    yield PHONE.read_bytes()
    for file_format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        yield file_of(COLOURS, file_format, save_all=True, append_images=[COLOURS.rotate(90 * k) for k in range(3)])
    yield b"P3 2 1 255 1 2 3 4 5 6\n"
    yield b"P2 2 1 255 1 2\n"


def mutated(files: list[bytes], draw: random.Random) -> bytes:
    data = bytearray(draw.choice(files))
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) or 1)
        match draw.randrange(6):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1 if data:
                data[place] ^= 1 << draw.randrange(8)
            case 2:
                del data[place:]
            case 3:
                other = draw.choice(files)
                data[place:] = other[draw.randrange(len(other)) :]
            case 4:
                # A length or an offset, of either byte order; most are near the beginning.
                place = draw.randrange(min(len(data), 200) or 1)
                data[place : place + 4] = draw.choice(EXTREMES)
            case 5:
                end = place + draw.randrange(64)
                data[end:end] = data[place:end] * draw.randint(1, 50)
    return bytes(data)


def peak_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the peak memory of any of the processes."""
    texts = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
    return max((1024 * int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) for text in texts), default=0)


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    decoders = DecoderPool()
    yield decoders
    decoders.close()


def test_there_is_a_seed_of_every_format(decoders: DecoderPool) -> None:
    formats = {str(PIL.Image.open(io.BytesIO(data)).format) for data in seeds()}
    assert formats == {*MODES, "MPO", "HEIF"}
    for data in seeds():
        assert decoders.decode(data, 0, SMALL).pixels.size > 0


def test_any_picture_is_decoded_or_refused_within_its_memory(decoders: DecoderPool) -> None:
    draw, files = random.Random(SEED), list(seeds())
    others = decoder_processes()
    decoders.warm()
    own = peak_bytes(decoder_processes() - others)
    peaks, processes = [own], decoder_processes() - others
    for number in range(8000 * ROUNDS):
        data = mutated(files, draw)
        try:
            assert 0 < decoders.decode(data, 0, SMALL).pixels.size <= 3 * SMALL.max_image_pixels
            tried["pictures decoded"] += 1
        except InvalidInput as error:
            tried["pictures refused"] += 1
            tried["pictures refused for their time"] += "takes longer" in error.message
        if number % 100 == 99:
            processes |= decoder_processes() - others
            peaks.append(peak_bytes(decoder_processes() - others))
    tried["decoder processes, one after the other"] = len(processes)
    assert len(processes) == 1, "a picture ended a decoder process, or took too long"
    tried["MiB at most in a decoder process"] = max(peaks) // 2**20
    assert max(peaks) <= own + SMALL.max_decoder_bytes
