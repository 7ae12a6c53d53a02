"""Schemathesis against the application behind a socket: requests drawn from /openapi.json, valid ones and others.

Every answer must be one that is documented; what the document allows must be accepted, and what it does not, refused.
"""

import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import negative_data_rejection

from serve_app.api import openapi
from serve_app.api.app import create_app
from serve_app.settings import AppSettings, JobSettings, LimitSettings
from tests.editors import Inverter
from tests.http_server import listening

EXAMPLES = 20

# So wide that two rules which no schema can state never matter: pictures × n, and the longest side of `size`.
LIMITS = LimitSettings(max_images=3, max_outputs=30, max_aspect_ratio=1e6, idempotency_max_keys=10_000)
SETTINGS = AppSettings(limits=LIMITS, jobs=JobSettings(max_jobs=10_000))
SCHEMA = schemathesis.openapi.from_dict({**openapi.document(SETTINGS, needs_key=False), "servers": [{"url": "/"}]})

# A picture that is text: Schemathesis 4.32 stumbles over bytes in a schema with `if`. One light pixel, which as a mask
# may change.
PICTURE = "P3 1 1 255 200 200 200"
schemathesis.openapi.format("binary", st.just(PICTURE))


# WebP's longest side, the shortest of all.
_MOST_OF_A_FILE = 16_383


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with listening(create_app(Inverter(), SETTINGS)) as url:
        yield url


def test_the_document_is_openapi() -> None:
    SCHEMA.validate()


# The same requests on every run, so that a failure is due to the change under test.
@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_is_answered_as_documented(case: Case[Any], server: str) -> None:
    assert case.meta is not None
    if isinstance(case.body, dict) and case.meta.generation.mode == GenerationMode.POSITIVE:
        _keep_rules_that_no_schema_states(case)
    case.call_and_validate(base_url=server, excluded_checks=[negative_data_rejection] if _loses_a_field(case) else [])


def _loses_a_field(case: Case[Any]) -> bool:
    """Return whether a form drops a field: an empty list or text is invalid, and in a form it is no field at all."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return False
    return any(value in ([], "") for value in case.body.values())


def _keep_rules_that_no_schema_states(case: Case[Any]) -> None:
    body: Any = case.body
    if case.headers and case.headers.pop("Idempotency-Key", None) is not None and not body.get("stream"):
        # The same key with another body is refused, as it should be.
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    if case.media_type == "application/json":
        body |= {name: _pictures_for(body[name]) for name in ("images", "image", "references", "mask") if name in body}
    if isinstance(body.get("mask"), list):
        body["mask"] = body["mask"][:1]
    if isinstance(body.get("prompt"), list):
        body["prompt"] = body["prompt"][0]
    if any(side.isdecimal() and int(side) > _MOST_OF_A_FILE for side in str(body.get("size")).split("x")):
        body.pop("size")
    if "guidance_scale" in body:
        body.pop("true_cfg_scale", None)
    if body.get("stream") and case.query:
        case.query.pop("async", None)
    if body.get("stream") and body.get("response_format") == "url":
        body.pop("response_format")
    if body.get("partial_images") and not (body.get("stream") or (case.query or {}).get("async") in (True, "true")):
        body.pop("partial_images")


def _pictures_for(value: Any) -> Any:
    """Return the same value with a picture in place of each text."""
    if isinstance(value, list):
        return [_pictures_for(item) for item in value]
    if isinstance(value, dict):
        return {name: item if name == "type" else _pictures_for(item) for name, item in value.items()}
    return base64.b64encode(PICTURE.encode()).decode() if isinstance(value, str) else value
