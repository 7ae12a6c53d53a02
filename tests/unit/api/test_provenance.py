"""The marks of every file that an edit answers with, over the whole application."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import c2pa
import pytest

from serve_app.api.app import create_app
from serve_app.images.provenance import EDITED, source_uri
from serve_app.images.signing import load_signer
from serve_app.settings import AppSettings, ProvenanceSettings
from tests.certificates import make_chain
from tests.editors import Gated, Inverter
from tests.http_calls import JobCaller, edit, error_of, events_of, play
from tests.pictures import source_type

MARK = source_uri(EDITED)


def files_of(items: list[dict[str, str]]) -> list[bytes]:
    return [base64.b64decode(item["b64_json"]) for item in items if "b64_json" in item]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("fields", [{"n": "2"}, {"stream": "true", "partial_images": "1"}], ids=["plain", "stream"])
def test_every_output_and_every_preview_has_the_mark(fields: dict[str, Any], output_format: str) -> None:
    answer = edit(create_app(Inverter(), AppSettings()), output_format=output_format, **fields)
    files = files_of(answer.json()["data"] if "n" in fields else events_of(answer))
    assert [source_type(file) for file in files] == [MARK, MARK]


def test_the_outputs_of_a_job_have_the_mark() -> None:
    async def story(editor: Gated) -> None:
        editor.gate.set()
        caller = JobCaller(editor)
        job = await caller.until(await caller.start(), "succeeded", "failed")
        assert [source_type(file) for file in files_of(job["result"]["data"])] == [MARK]

    play(story)


def test_the_mark_can_be_left_out() -> None:
    answer = edit(create_app(Inverter(), AppSettings(provenance=ProvenanceSettings(xmp=False))))
    assert [source_type(file) for file in files_of(answer.json()["data"])] == [None]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_with_a_certificate_every_output_and_preview_is_signed(output_format: str, tmp_path: Path) -> None:
    app = create_app(Inverter(), AppSettings(provenance=make_chain().settings(tmp_path)))
    answer = edit(app, output_format=output_format, stream="true", partial_images="2")
    files = files_of(events_of(answer))
    assert len(files) == 3
    for file in files:
        found = json.loads(c2pa.Reader(f"image/{output_format}", io.BytesIO(file)).json())
        assert found["validation_state"] == "Valid"


def test_a_file_that_cannot_be_signed_does_not_leave(tmp_path: Path) -> None:
    app = create_app(Inverter(), AppSettings(provenance=make_chain().settings(tmp_path)))
    # As in a process that starts later, where the key is not.
    load_signer.cache_clear()
    (tmp_path / "signing.key").unlink()
    answer = edit(app)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "GENERATION_ERROR")
    streamed = edit(app, stream="true", partial_images="1").text
    assert "event: error" in streamed
    assert "b64_json" not in answer.text + streamed


def test_an_application_whose_key_does_not_fit_does_not_start(tmp_path: Path) -> None:
    settings = make_chain().settings(tmp_path)
    (tmp_path / "signing.key").write_bytes(make_chain().key)
    with pytest.raises(ValueError, match="is not the key of the first certificate"):
        create_app(Inverter(), AppSettings(provenance=settings))
