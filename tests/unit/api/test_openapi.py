"""/openapi.json and /docs against the live application: routes, fields, limits and responses."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from serve_app.api import openapi
from serve_app.api.app import create_app
from serve_app.errors import DeadlineExceeded, EditError, GenerationError, Overloaded, TooManySamples
from serve_app.forms.names import FIELDS, GENERATION_FIELDS, SYNONYMS
from serve_app.settings import AppSettings, AuthSettings, LimitSettings
from tests.editors import Inverter, Stumbler
from tests.http_calls import MODEL, call, events_of
from tests.pictures import png

SETTINGS = AppSettings(model=MODEL, limits=LimitSettings(max_images=3, max_outputs=30))
DOCUMENT = openapi.document(SETTINGS, needs_key=False)
SCHEMAS = DOCUMENT["components"]["schemas"]
EDITS = "/v1/images/edits"
GENERATIONS = "/v1/images/generations"


def examples_of(path: str) -> dict[str, Any]:
    body: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    examples: dict[str, Any] = body["examples"]
    return examples


EXAMPLES, GENERATION_EXAMPLES = examples_of(EDITS), examples_of(GENERATIONS)


@pytest.fixture
def editor() -> Inverter:
    return Inverter()


@pytest.fixture
def app(editor: Inverter) -> Starlette:
    return create_app(editor, SETTINGS)


def check(value: Any, schema: dict[str, Any], document: dict[str, Any] = DOCUMENT) -> None:
    """Raise ValidationError if `value` does not fit the schema, whose references are the document's."""
    validator = Draft202012Validator({"components": document["components"], **schema})
    validator.validate(value)


def check_answer(response: httpx.Response, path: str, method: str, document: dict[str, Any] = DOCUMENT) -> None:
    """Check status, headers and body against the document's operation."""
    documented = document["paths"][path][method]["responses"]
    assert str(response.status_code) in documented, response.text
    answer = documented[str(response.status_code)]
    for name, header in answer.get("headers", {}).items():
        assert name in response.headers or not header.get("required")
    media_type = response.headers["content-type"].partition(";")[0]
    schema = answer["content"][media_type]["schema"]
    if media_type == "application/json":
        check(response.json(), schema, document)
        return
    for event in events_of(response):
        check({"event": event["type"], "data": json.dumps(event)}, schema, document)
        check(event, document["components"]["schemas"]["StreamEvent"], document)


# --- what is in it ------------------------------------------------------------------------------------------------


def test_it_is_served(app: Starlette) -> None:
    response = call(app, "GET", "/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads(json.dumps({**DOCUMENT, "servers": [{"url": "/"}]}))


def test_under_a_route_prefix_it_says_so(app: Starlette) -> None:
    prefixed = Starlette(routes=[])
    prefixed.mount("/edits", app)
    assert call(prefixed, "GET", "/edits/openapi.json").json()["servers"] == [{"url": "/edits"}]


def test_its_paths_and_methods_are_those_of_the_application(app: Starlette) -> None:
    served = {
        (re.sub(r":path}", "}", route.path), method)
        for route in app.routes
        if isinstance(route, Route) and route.include_in_schema
        for method in route.methods or ()
        if method != "HEAD"
    }
    documented = {
        (path, method.upper()) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    assert documented == served


def test_its_fields_are_those_of_the_application() -> None:
    properties = SCHEMAS["EditForm"]["properties"]
    pictures = {"image": "images", "image[]": "images", "images[]": "images"}
    synonyms = {**pictures, "references[]": "references", "mask[]": "mask", "prompt[]": "prompt"}
    assert set(synonyms) >= set(SYNONYMS)
    # Stated only where there are any: test_presets.py, test_webhooks.py.
    offered = {"preset", "adapters", "webhook_url"}
    assert set(properties) == FIELDS - set(synonyms) - offered
    for synonym, name in synonyms.items():
        assert f"`{synonym}`" in properties[name]["description"]
    assert set(SCHEMAS["EditJson"]["properties"]) == FIELDS - set(SYNONYMS) - offered
    for name in ("GenerationForm", "GenerationJson"):
        assert set(SCHEMAS[name]["properties"]) == GENERATION_FIELDS - set(SYNONYMS) - offered
    assert "`prompt[]`" in SCHEMAS["GenerationForm"]["properties"]["prompt"]["description"]


def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from schemas_in(child)


def test_its_examples_and_defaults_fit_their_schemas() -> None:
    count = 0
    for schema in schemas_in(SCHEMAS):
        examples = schema["examples"] if isinstance(schema.get("examples"), list) else []
        for value in [*examples, *([schema["default"]] if "default" in schema else [])]:
            check(value, schema)
            count += 1
    for example in EXAMPLES.values():
        check(example["value"], SCHEMAS["EditJson"])
    for example in GENERATION_EXAMPLES.values():
        check(example["value"], SCHEMAS["GenerationJson"])
    assert count > 40


def test_two_applications_do_not_share_limits() -> None:
    before = json.dumps(DOCUMENT)
    openapi.document(AppSettings(limits=LimitSettings(max_images=9)), needs_key=False)
    assert json.dumps(DOCUMENT) == before
    assert SCHEMAS["EditForm"]["properties"]["images"]["maxItems"] == 3
    assert SCHEMAS["EditJson"]["properties"]["prompt"]["anyOf"][1]["maxItems"] == 3


# --- against the live application ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("query", ["", "?async=true"])
def test_every_example_is_answered_as_documented(app: Starlette, name: str, query: str) -> None:
    response = call(app, "POST", EDITS + query, json=EXAMPLES[name]["value"])
    refused = query and name == "stream"
    assert response.status_code == (400 if refused else 202 if query else 200)
    check_answer(response, EDITS, "post")


@pytest.mark.parametrize("name", GENERATION_EXAMPLES)
@pytest.mark.parametrize("query", ["", "?async=true"])
def test_every_example_of_a_generation_is_answered_as_documented(app: Starlette, name: str, query: str) -> None:
    response = call(app, "POST", GENERATIONS + query, json=GENERATION_EXAMPLES[name]["value"])
    refused = query and name == "stream"
    assert response.status_code == (400 if refused else 202 if query else 200)
    check_answer(response, GENERATIONS, "post")


def test_a_model_that_does_not_generate_answers_as_documented(app: Starlette, editor: Inverter) -> None:
    editor.generates = False
    response = call(app, "POST", GENERATIONS, json=GENERATION_EXAMPLES["openai"]["value"])
    assert response.status_code == 404
    check_answer(response, GENERATIONS, "post")


def test_hints_of_a_generation_are_named_as_documented(app: Starlette) -> None:
    body = {"prompt": "x", "quality": "high", "moderation": "low", "style": "vivid"}
    response = call(app, "POST", GENERATIONS, json=body)
    documented = DOCUMENT["paths"][GENERATIONS]["post"]["responses"]["200"]["headers"]["x-edit-ignored"]
    assert response.headers["x-edit-ignored"] == "moderation, quality, style"
    check(response.headers["x-edit-ignored"], documented["schema"])


def send(app: Starlette, fields: dict[str, Any]) -> httpx.Response:
    """Send the fields as a form, with a picture and with the fields that they require."""
    data = {"prompt": "invert", "output_format": "jpeg", "stream": "true", **fields}
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in data.items()}
    return call(app, "POST", EDITS, files={"images": ("a.png", png(9))}, data=texts)


def test_all_defaults_together_are_as_if_left_out(app: Starlette, editor: Inverter) -> None:
    properties = SCHEMAS["EditForm"]["properties"]
    response = send(app, {name: field["default"] for name, field in properties.items() if "default" in field})
    check_answer(response, EDITS, "post")
    send(app, {"stream": False, "output_format": "png"})
    said, left_out = editor.requests
    for name in ("negative_prompt", "n", "size", "fit", "partial_images"):
        assert getattr(said, name) == getattr(left_out, name)


BOUNDS = [
    (name, field[bound], field[bound] + step)
    for name, field in SCHEMAS["EditForm"]["properties"].items()
    for bound, step in (("minimum", -1), ("maximum", 1))
    if bound in field
]


@pytest.mark.parametrize(("name", "last", "beyond"), BOUNDS)
def test_a_number_is_taken_up_to_its_documented_bound(app: Starlette, name: str, last: float, beyond: float) -> None:
    assert send(app, {name: last}).status_code == 200
    refused = send(app, {name: beyond})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == name


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "user"])
def test_a_text_is_taken_up_to_its_documented_length(app: Starlette, name: str) -> None:
    field = SCHEMAS["EditForm"]["properties"][name]
    length = field.get("maxLength") or field["anyOf"][0]["maxLength"]
    assert send(app, {name: "x" * length}).status_code == 200
    assert send(app, {name: "x" * (length + 1)}).status_code == 400


CHOICES = {name: field["enum"] for name, field in SCHEMAS["EditForm"]["properties"].items() if "enum" in field}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_those_documented(app: Starlette, name: str) -> None:
    for value in CHOICES[name]:
        # `fit=free` needs a size in pixels, and links no stream.
        response = send(app, {"size": "64x64", "stream": value != "url", name: value})
        # The model of this application makes no transparency, which no document of a server can know.
        is_refused = (name, value) == ("background", "transparent")
        assert response.status_code == (400 if is_refused else 200)
    assert send(app, {name: "other"}).status_code in (400, 404)


@pytest.mark.parametrize(("query", "status"), [("", "200"), ("?async=true", "202")])
def test_what_had_no_effect_is_named_as_documented(app: Starlette, query: str, status: str) -> None:
    body = {**EXAMPLES["batch"]["value"], "quality": "high", "moderation": "low", "input_fidelity": "low"}
    response = call(app, "POST", EDITS + query, json=body)
    documented = DOCUMENT["paths"][EDITS]["post"]["responses"][status]["headers"]["x-edit-ignored"]
    check(response.headers["x-edit-ignored"], documented["schema"])


def test_every_error_of_an_edit_is_as_documented(app: Starlette, editor: Inverter) -> None:
    small = create_app(editor, AppSettings(limits=LimitSettings(max_file_bytes=10, max_request_bytes=10)))
    answers = [
        send(app, {"n": 0}),
        send(app, {"model": "dall-e-2"}),
        call(app, "POST", EDITS, content=b"x"),
        send(small, {}),
    ]
    errors: list[EditError] = [
        GenerationError("CUDA out of memory"),
        TooManySamples("enough", retry_after_s=5),
        DeadlineExceeded("too late"),
        # Last, since the load shedder then refuses the next requests too.
        Overloaded("full", retry_after_s=5),
    ]
    for error in errors:
        editor.error = error
        answers.append(send(app, {"stream": False}))
    assert [answer.status_code for answer in answers] == [400, 404, 415, 413, 500, 429, 504, 503]
    for answer in answers:
        check_answer(answer, EDITS, "post")


def test_a_key_that_comes_again_is_answered_as_documented(app: Starlette) -> None:
    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            headers = {"Idempotency-Key": "k"}
            bodies = [{**EXAMPLES["batch"]["value"], "n": n} for n in (1, 1, 2)]
            return [await client.post(EDITS, json=body, headers=headers) for body in bodies]

    answers = asyncio.run(go())
    assert [answer.status_code for answer in answers] == [200, 200, 422]
    for answer in answers:
        check_answer(answer, EDITS, "post")
    documented = DOCUMENT["paths"][EDITS]["post"]["responses"]["200"]["headers"]["Idempotency-Replayed"]
    check(answers[1].headers["idempotency-replayed"], documented["schema"])


@pytest.mark.parametrize("key", ["k", "a b", "x" * 255, "", " ", "a\tb", "schlüssel", "x" * 256])
def test_an_idempotency_key_is_taken_where_its_schema_says(app: Starlette, key: str) -> None:
    (schema,) = [
        each["schema"] for each in DOCUMENT["paths"][EDITS]["post"]["parameters"] if each["name"] == "Idempotency-Key"
    ]
    fits = Draft202012Validator(schema).is_valid(key)
    headers = {"Idempotency-Key": key.encode()}
    answer = call(app, "POST", EDITS, json=EXAMPLES["batch"]["value"], headers=headers)
    assert answer.status_code == (200 if fits else 400)


def test_an_error_in_a_stream_is_as_documented() -> None:
    editor = Stumbler()
    editor.error = GenerationError("CUDA out of memory")
    *_, last = send(create_app(editor, SETTINGS), {}).text.strip().split("\n\n")
    check(json.loads(last.partition("data: ")[2]), SCHEMAS["ErrorEvent"])


def test_the_other_routes_answer_as_documented(app: Starlette, editor: Inverter) -> None:
    def ask(path: str, url: str, method: str = "get") -> int:
        response = call(app, method.upper(), url)
        check_answer(response, path, method)
        return response.status_code

    assert ask("/v1/models", "/v1/models") == 200
    assert ask("/v1/models/{id}", "/v1/models/lab/edit") == 200
    assert ask("/v1/models/{id}", "/v1/models/other") == 404
    assert ask("/v1/jobs/{id}", "/v1/jobs/other") == 404
    assert ask("/v1/jobs/{id}", "/v1/jobs/other", "delete") == 404
    for path in ("/health", "/health/live", "/health/ready"):
        assert ask(path, path) == 200
    editor.is_ready = False
    assert ask("/health/ready", "/health/ready") == ask("/health", "/health") == 503


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_other_methods_are_refused_and_the_documented_ones_named(app: Starlette, path: str) -> None:
    response = call(app, "PATCH", path)
    assert response.status_code == 405
    methods = {method.upper() for method in DOCUMENT["paths"][path] if method != "parameters"}
    assert set(response.headers["allow"].split(", ")) - {"HEAD"} == methods


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def closed_app(editor: Inverter, tmp_path: Path) -> Starlette:
    path = tmp_path / "keys"
    path.write_text("alpha\n")
    return create_app(editor, AppSettings(model=MODEL, auth=AuthSettings(keys_file=path)))


def test_with_keys_it_is_public_and_asks_for_one_where_the_application_does(closed_app: Starlette) -> None:
    document = call(closed_app, "GET", "/openapi.json").json()
    for path, item in document["paths"].items():
        for method in item.keys() - {"parameters"}:
            response = call(closed_app, method.upper(), path)
            asks = response.status_code == 401
            assert asks == (not path.startswith(("/health", "/v1/images/{id}/")))
            assert [list(scheme) for scheme in item[method]["security"]] == ([["bearer"], ["basic"]] if asks else [])
            check_answer(response, path, method, document)
    assert "securitySchemes" not in DOCUMENT["components"]


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_and_what_it_loads_come_from_here_and_need_no_key(closed_app: Starlette) -> None:
    page = call(closed_app, "GET", "/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    addresses = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert {"docs/start.js", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"} == set(addresses)
    for response in (page, *(call(closed_app, "GET", f"/{address}") for address in addresses)):
        assert response.status_code == 200
    assert '"openapi.json"' in call(closed_app, "GET", "/docs/start.js").text


def test_the_page_may_run_only_what_comes_from_here(app: Starlette) -> None:
    for path in ("/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"):
        headers = call(app, "GET", path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy.pop("img-src") == "'self' blob: data:"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert policy["default-src"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
