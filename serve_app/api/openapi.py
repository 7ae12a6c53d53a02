"""The OpenAPI document, /openapi.json.

Built from the code that validates requests and types responses (EditFields, the limits, the response schemas, the
error tree), so that the document cannot differ from the server.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from importlib.metadata import version
from typing import Any, get_args

from pydantic import TypeAdapter

from serve_app.decoding.files import READ_FORMATS_TEXT
from serve_app.errors import (
    DeadlineExceeded,
    EditError,
    Forbidden,
    GenerationError,
    IdempotencyKeyReused,
    InvalidInput,
    ModelNotFound,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    StoreUnavailable,
    TooManySamples,
    Unauthorized,
    UnsupportedMediaType,
    UploadTooSlow,
)
from serve_app.forms import fields, json_body, multipart
from serve_app.forms.names import GENERATION_FIELDS
from serve_app.idempotency.runner import IDEMPOTENCY_KEY, KEY_PATTERN, MAX_KEY_CHARS, REPLAYED
from serve_app.images.encoding import OutputFormat
from serve_app.images.geometry import SIZE_PATTERN
from serve_app.responses import schemas
from serve_app.responses.edits import IGNORED
from serve_app.settings import AppSettings, LimitSettings, ModelSettings

Schema = dict[str, Any]

_REF = "#/components/schemas/{model}"
_BODIES: tuple[Any, ...] = (
    schemas.EditResponse,
    schemas.JobBody,
    schemas.DeletedJobBody,
    schemas.ModelListBody,
    schemas.ModelBody,
    schemas.HealthBody,
    schemas.ErrorBody,
)

_ABOUT = (
    "Edits pictures by instruction. `images` is a batch: each picture is edited on its own. Some models make pictures "
    "from a text alone too. Every error of every route has the same body. An unsupported method returns 405 with "
    "`Allow`, an unknown path 404, and HEAD the headers of GET."
)


def document(settings: AppSettings, needs_key: bool) -> Schema:
    """Return the OpenAPI 3.1 document, without `servers`. `needs_key`: whether the server has API keys."""
    paths: dict[str, Schema] = {
        "/v1/images/edits": {"post": _edit(settings)},
        "/v1/images/generations": {"post": _generate(settings)},
        "/v1/jobs/{id}": {"parameters": [_JOB_ID], "get": _get_job(), "delete": _delete_job()},
        "/v1/images/{id}/{name}": {"parameters": _LINK, "get": _get_picture()},
        "/v1/models": {"get": _operation("listModels", "The names of the served model", schemas.ModelListBody)},
        "/v1/models/{id}": {"parameters": [_model_id(settings.model)], "get": _get_model()},
        "/health/live": {"get": _health("isLive", "Whether the process answers")},
        "/health/ready": {"get": _health("isReady", "Whether a replica has a warm model", NotReady)},
        "/health": {"get": _health("isHealthy", "As /health/ready", NotReady)},
    }
    about = {"title": "Image edits", "version": version("serve-image-edits"), "description": _ABOUT}
    components: Schema = {"schemas": _schemas(settings)}
    operations = [paths[path][method] for path in paths for method in paths[path] if method != "parameters"]
    guarded = [operation for operation in operations if "security" not in operation]
    for operation in guarded:
        operation["responses"].update(_error_responses([Forbidden]))
    if needs_key:
        components["securitySchemes"] = _SECURITY_SCHEMES
        for operation in guarded:
            _require_key(operation)
    return {"openapi": "3.1.1", "info": about, "paths": paths, "components": components}


def _schemas(settings: AppSettings) -> Schema:
    adapters: list[TypeAdapter[Any]] = [TypeAdapter(body) for body in (*_BODIES, schemas.StreamEvent)]
    refs, definitions = TypeAdapter.json_schemas(
        [(index, "serialization", adapter) for index, adapter in enumerate(adapters)], ref_template=_REF
    )
    # A union has no name of its own.
    return {
        **definitions["$defs"],
        "StreamEvent": refs[len(_BODIES), "serialization"],
        "EditForm": _edit_form(settings),
        "EditJson": _edit_json(settings),
        "GenerationForm": _generation_form(settings),
        "GenerationJson": _generation_json(settings),
    }


def _ref(body: Any) -> Schema:
    return {"$ref": _REF.format(model=body if isinstance(body, str) else body.__name__)}


# --- operations ---------------------------------------------------------------------------------------------------


def _edit(settings: AppSettings) -> Schema:
    body = {
        multipart.MEDIA_TYPE: {"schema": _ref("EditForm"), "encoding": {"images": {"contentType": "image/*"}}},
        json_body.MEDIA_TYPE: {"schema": _ref("EditJson"), "examples": _JSON_EXAMPLES},
    }
    operation = _making(settings, body, fields.EditFields, ModelNotFound)
    return {"operationId": "editImages", "summary": "Edit pictures", **operation}


def _generate(settings: AppSettings) -> Schema:
    body = {
        multipart.MEDIA_TYPE: {"schema": _ref("GenerationForm")},
        json_body.MEDIA_TYPE: {"schema": _ref("GenerationJson"), "examples": _GENERATION_EXAMPLES},
    }
    operation = _making(settings, body, fields.GenerationFields, ModelNotFound, NotFound)
    return {
        "operationId": "generateImages",
        "summary": "Make pictures from a text alone",
        "description": "Only of models that do: `generates` in `GET /v1/models`. Others answer 404.",
        **operation,
    }


def _making(settings: AppSettings, body: Schema, kind: type[fields.EditFields], *not_found: type[NotFound]) -> Schema:
    """Return what the operations that make pictures have in common. `body`: by media type."""
    ignored = _ignored(kind)
    answer = {
        "description": "the outputs; with `stream`, their events as server-sent events",
        "headers": {
            "Server-Timing": {
                "description": "times in ms: queue, encode, denoise, decode, serialize; absent from a stream",
                "schema": {"type": "string"},
            },
            REPLAYED: _REPLAYED,
            IGNORED: ignored,
        },
        "content": {
            "application/json": {"schema": _ref(schemas.EditResponse)},
            # The schema of one event: OpenAPI describes sequences of events only from 3.2 on.
            "text/event-stream": {"schema": _EVENT},
        },
    }
    job = {
        "description": "with `async=true`: the job that was created",
        "headers": {
            "Location": {"description": "the address of the job", "required": True, "schema": {"type": "string"}},
            REPLAYED: _REPLAYED,
            IGNORED: ignored,
        },
        "content": {"application/json": {"schema": _ref(schemas.JobBody)}},
        "links": {
            name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in ("getJob", "deleteJob")
        },
    }
    too_much = (UploadTooSlow, PayloadTooLarge, TooManySamples, Overloaded, StoreUnavailable)
    refusals: tuple[type[EditError], ...] = (
        InvalidInput,
        *not_found,
        UnsupportedMediaType,
        IdempotencyKeyReused,
        *too_much,
    )
    return {
        "parameters": [_ASYNC, _idempotency_key(settings), _REQUEST_ID],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": answer, "202": job, **_error_responses((*refusals, *_ANYWHERE_IN_THE_CLUSTER))},
    }


def _operation(id: str, summary: str, body: Any, *errors: type[EditError]) -> Schema:
    answer = {"description": summary, "content": {"application/json": {"schema": _ref(body)}}}
    responses = {"200": answer, **_error_responses((*errors, GenerationError))}
    return {"operationId": id, "summary": summary, "responses": responses}


def _get_job() -> Schema:
    summary = "Progress and result of a job, or the stream of its events"
    errors = (InvalidInput, NotFound, StoreUnavailable, *_ANYWHERE_IN_THE_CLUSTER)
    operation = _operation("getJob", summary, schemas.JobBody, *errors)
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    return {**operation, "parameters": [_JOB_STREAM]}


def _delete_job() -> Schema:
    summary = "Cancel a job if it runs, and delete it"
    return _operation(
        "deleteJob", summary, schemas.DeletedJobBody, NotFound, StoreUnavailable, *_ANYWHERE_IN_THE_CLUSTER
    )


def _get_picture() -> Schema:
    picture = {"type": "string", "format": "binary"}
    answer = {
        "description": "the picture file",
        "content": {f"image/{output_format}": {"schema": picture} for output_format in get_args(OutputFormat)},
    }
    errors = (NotFound, StoreUnavailable, *_ANYWHERE_IN_THE_CLUSTER)
    return {
        "operationId": "getPicture",
        "summary": "A picture, by a link that `response_format=url` has answered; no key is needed",
        "security": [],
        "responses": {"200": answer, **_error_responses(errors)},
    }


def _get_model() -> Schema:
    return _operation("getModel", "One name of the served model", schemas.ModelBody, ModelNotFound)


def _health(id: str, summary: str, *errors: type[EditError]) -> Schema:
    return {**_operation(id, summary, schemas.HealthBody, *errors), "security": []}


_EVENT = {
    "description": "one event; `[DONE]` is the last",
    "type": "object",
    "required": ["data"],
    "anyOf": [
        {"properties": {"data": {"const": "[DONE]"}}},
        {
            "required": ["event"],
            "properties": {
                "event": {"type": "string", "description": "the `type` in `data`"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": _ref("StreamEvent"),
                },
            },
        },
    ],
}

# Errors of every operation that calls another process.
_ANYWHERE_IN_THE_CLUSTER = (GenerationError, NotReady, DeadlineExceeded)

_ASYNC = {
    "name": "async",
    "in": "query",
    "description": "return a job at once; not together with `stream`",
    "schema": {"type": "boolean", "default": False},
}
_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "description": "written to the log and returned, if it is 1 to 128 letters, digits, `.`, `_`, `-`",
    "schema": {"type": "string"},
}
_REPLAYED = {
    "description": f"`true` if this is the answer to an earlier request with the same {IDEMPOTENCY_KEY}",
    "schema": {"type": "string", "enum": ["true"]},
}
_JOB_STREAM = {
    "name": "stream",
    "in": "query",
    "description": "the events of the job until it ends, as server-sent events",
    "schema": {"type": "boolean", "default": False},
}
_LINK = [
    {"name": name, "in": place, "required": True, "schema": {"type": "string"}}
    for name, place in (("id", "path"), ("name", "path"), ("expires", "query"), ("signature", "query"))
]
_JOB_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def _ignored(kind: type[fields.EditFields]) -> Schema:
    hint = f"({'|'.join(kind.hints)})"
    about = "the names of fields that were accepted without effect, with commas between them; absent if all had"
    return {"description": about, "schema": {"type": "string", "pattern": f"^{hint}(, {hint})*$"}}


def _idempotency_key(settings: AppSettings) -> Schema:
    return {
        "name": IDEMPOTENCY_KEY,
        "in": "header",
        "description": "your own name for this edit. The same key with the same body joins the running edit or, for "
        f"{settings.limits.idempotency_ttl_s:g} s, returns its answer again; not together with `stream`",
        "schema": {"type": "string", "maxLength": MAX_KEY_CHARS, "pattern": f"^{KEY_PATTERN}$"},
    }


def _model_id(model: ModelSettings) -> Schema:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": model.served_name}


# --- errors -------------------------------------------------------------------------------------------------------


def _error_responses(classes: Iterable[type[EditError]]) -> dict[str, Schema]:
    by_status: dict[int, list[type[EditError]]] = defaultdict(list)
    for cls in classes:
        by_status[cls.status].append(cls)
    return {str(status): _error_response(by_status[status]) for status in sorted(by_status)}


def _error_response(classes: list[type[EditError]]) -> Schema:
    """Return the response of one status."""
    of_these = {"properties": {"error": {"properties": {"code": {"enum": [cls.code for cls in classes]}}}}}
    return {
        "description": "; ".join(f"{cls.code}: {cls.when}" for cls in classes),
        "headers": _error_headers(classes[0]),
        "content": {"application/json": {"schema": {"allOf": [_ref(schemas.ErrorBody), of_these]}}},
    }


def _error_headers(cls: type[EditError]) -> Schema:
    headers = {
        "x-should-retry": _header(
            "whether the same request may succeed later; OpenAI's clients read it", enum=["true", "false"]
        )
    }
    if issubclass(cls, (TooManySamples, Overloaded, NotReady, StoreUnavailable)):
        headers["Retry-After"] = _header("seconds", type="integer", minimum=0)
    if issubclass(cls, Unauthorized):
        headers["WWW-Authenticate"] = _header("Bearer and Basic")
    return headers


def _header(description: str, **schema: Any) -> Schema:
    return {"description": description, "required": True, "schema": {"type": "string", **schema}}


# --- keys ---------------------------------------------------------------------------------------------------------

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "basic": {"type": "http", "scheme": "basic", "description": "any user name; the password is an API key"},
}


def _require_key(operation: Schema) -> None:
    operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]
    operation["responses"].update(_error_responses([Unauthorized]))


# --- the body of an edit ------------------------------------------------------------------------------------------


_BATCH = f"a batch: each picture is edited on its own. {READ_FORMATS_TEXT}"
_REFERENCES = "pictures that every edit looks at beside its own, if the model takes several"
_MASK = (
    "the part that may change: one mask for every picture, or one for each, of its picture's size. Transparent means "
    "edit; in a mask without transparency, white does. The bytes of all other pixels stay. Not with `fit=free`"
)


def _edit_form(settings: AppSettings) -> Schema:
    picture = {"type": "string", "format": "binary"}
    pictures = {
        "type": "array",
        "items": picture,
        "minItems": 1,
        "maxItems": settings.limits.max_images,
        # `image` has no property: Swagger UI would send it empty beside `images`.
        "description": f"{_BATCH}. `images[]` is the same; `image`, `image[]`: OpenAI's names, for one edit: of "
        "several, the first is edited, and the others are references",
    }
    references = {
        "type": "array",
        "items": picture,
        "maxItems": settings.limits.max_references,
        "description": f"{_REFERENCES}. `references[]` is the same",
    }
    mask = {
        "type": "array",
        "items": picture,
        "maxItems": settings.limits.max_images,
        "description": f"{_MASK}. `mask[]` is the same",
    }
    texts = _texts(settings)
    texts["prompt"]["description"] += _SAME_PROMPT
    body = _body({"images": pictures, "references": references, "mask": mask, **texts}, _COVERED_BY_MASK)
    return {**body, "required": ["images", "prompt"], "description": _LEFT_EMPTY}


def _edit_json(settings: AppSettings) -> Schema:
    limits = settings.limits
    pictures = {
        "images": {
            "anyOf": [_array(_TEXT, limits.max_images), *_one_edit(limits)],
            "description": f"{_BATCH}. Several objects are one edit, as several `image` are",
        },
        "image": {
            "anyOf": _one_edit(limits),
            "description": "OpenAI's name for one edit: of several, the first is edited, and the others are references",
        },
        "references": _json_references(limits),
        "mask": {
            "anyOf": [_array(_json_picture(), limits.max_images, least=0), _json_picture(), {"type": "null"}],
            "description": _MASK,
        },
    }
    body = _body({**pictures, **_nullable(_texts(settings))}, _COVERED_BY_MASK)
    several = {"type": "array", "minItems": 2}
    objects = {**several, "contains": {"type": "object"}}
    twice = [{"properties": {"image": several}, "required": ["image"]}]
    twice += [{"properties": {"images": objects}, "required": ["images"]}]
    both = {"properties": {"references": _PICTURES_GIVEN}, "required": ["references"], "anyOf": twice}
    return {**body, "required": ["prompt"], "oneOf": [_given("images"), _given("image")], "not": both}


def _generation_form(settings: AppSettings) -> Schema:
    texts = _generation_texts(settings)
    texts["prompt"]["description"] += _SAME_PROMPT
    return {**_body(texts), "required": ["prompt"], "description": _LEFT_EMPTY}


def _generation_json(settings: AppSettings) -> Schema:
    return {**_body(_nullable(_generation_texts(settings))), "required": ["prompt"]}


def _generation_texts(settings: AppSettings) -> Schema:
    """Return the schemas of the fields of a generation, described without the pictures of an edit."""
    texts = _texts(settings, fields.GenerationFields)
    for name in texts.keys() - GENERATION_FIELDS:
        del texts[name]
    texts["prompt"]["anyOf"][1]["maxItems"] = 1
    texts["prompt"].update(description="what to make; a list of one is the same", examples=["a red house by a lake"])
    texts["n"]["description"] = f"variants, at most {settings.limits.max_outputs}"
    texts["size"].update(
        pattern=f"^(auto|{SIZE_PATTERN.pattern})$",
        description="`auto`: a square of the model's native area; `WxH`: exactly these pixels",
    )
    texts["background"]["description"] = (
        "`auto`: as the model makes it; `opaque`: on white; `transparent`: only from models that make transparency"
    )
    return texts


def _nullable(texts: Schema) -> Schema:
    """Return the schemas of text fields in JSON."""
    nullable = {name: texts[name] if name == "prompt" else _or_null(texts[name]) for name in texts}
    # Clients send it where no model is configured.
    nullable["model"]["anyOf"].append({"type": "string", "enum": [""]})
    return nullable


_LEFT_EMPTY = "A field that is left empty, other than the prompt, is a field left out."
_SAME_PROMPT = ". `prompt[]` is the same field"
_TEXT = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}


def _array(items: Schema, most: int, least: int = 1) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _one_edit(limits: LimitSettings) -> list[Schema]:
    """Return what the pictures of one edit may be: one, or one and its references."""
    picture = _json_picture()
    return [_array(picture, 1 + limits.max_references), picture, {"type": "null"}]


def _json_references(limits: LimitSettings) -> Schema:
    picture = _json_picture()
    shared = _array(picture, limits.max_references, least=0)
    nested = _array(shared, limits.max_images)
    return {
        "anyOf": [shared, nested, picture, {"type": "null"}],
        "description": f"{_REFERENCES}; or a list for each picture",
    }


def _json_picture() -> Schema:
    url = {**_TEXT, "description": "a data URL; an http or https URL only of a host that `inputs.allowed_hosts` names"}
    # OpenAI's edits, xAI's, and chats.
    return {"anyOf": [_TEXT, _typed(image_url=url), _typed(url=url), _typed(image_url=_closed(url=url))]}


def _closed(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _typed(**properties: Schema) -> Schema:
    """Return an object that may have the type `image_url` too."""
    return {**_closed(**properties), "properties": {**properties, "type": {"type": "string", "enum": ["image_url"]}}}


def _or_null(schema: Schema) -> Schema:
    """Return a schema that allows null: typed clients send null for every field that was left out."""
    about = schema.keys() & {"description", "default", "examples"}
    rules = {name: schema[name] for name in schema.keys() - about}
    return {**{name: schema[name] for name in about}, "anyOf": [rules, {"type": "null"}]}


def _body(properties: Schema, *rules: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "allOf": [
            _if_then("output_compression", {"type": "integer", "maximum": fields.MAX_COMPRESSION - 1}, _LOSSY),
            _if_then("background", {"const": "transparent"}, _NO_JPEG),
            *rules,
        ],
        "additionalProperties": False,
    }


def _given(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _if_then(name: str, value: Schema, then: Schema) -> Schema:
    return {"if": {"required": [name], "properties": {name: value}}, "then": then}


_PICTURES_GIVEN = {"anyOf": [{"type": "array", "minItems": 1}, {"type": ["string", "object"]}]}
_COVERED_BY_MASK = _if_then("mask", _PICTURES_GIVEN, {"properties": {"fit": {"enum": ["cover", None]}}})
_NO_JPEG = {"properties": {"output_format": {"enum": ["png", "webp", None]}}}
_LOSSY = {"required": ["output_format"], "properties": {"output_format": {"enum": ["jpeg", "webp"]}}}


def _texts(settings: AppSettings, kind: type[fields.EditFields] = fields.EditFields) -> Schema:
    """Return the schemas of all fields but the pictures, with this server's limits and names."""
    texts = copy.deepcopy(fields.properties(kind))
    # JSON has prompts as a list, a form as repeated fields.
    texts["prompt"]["anyOf"][1]["maxItems"] = settings.limits.max_images
    texts["n"]["description"] += f"; pictures × n is at most {settings.limits.max_outputs}"
    texts["model"].update(enum=list(settings.model.all_names), default=settings.model.served_name)
    _offer(texts, "preset", settings.model.presets, enum=list(settings.model.presets))
    one = f"({'|'.join(map(re.escape, settings.model.adapters))})( *: *{_STRENGTH})?"
    _offer(texts, "adapters", settings.model.adapters, pattern=f"^({one}( *, *{one})*)?$")
    hosts = [host.replace("*.", "hooks.") for host in settings.webhooks.allowed_hosts]
    _offer(texts, "webhook_url", [f"https://{host}/jobs" for host in hosts], format="uri")
    return texts


# From -4 to 4.
_STRENGTH = r"-?([0-3](\.[0-9]{1,9})?|4(\.0)?)"


def _offer(texts: Schema, name: str, served: Collection[str], **rules: Any) -> None:
    """State what a field may name: nothing that this server has not, and no such field where it has none."""
    if served:
        texts[name].update(rules, examples=[next(iter(served))])
    else:
        del texts[name]


# One pixel each, grey and black. As a mask, the grey one means edit.
_PICTURES = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
)
_JSON_EXAMPLES = {
    "batch": {
        "summary": "Two pictures, two variants each",
        "value": {"images": list(_PICTURES), "prompt": "make the sky blue", "n": 2, "seed": 7},
    },
    "prompts": {
        "summary": "A prompt for each picture, as JPEG",
        "value": {
            "images": list(_PICTURES),
            "prompt": ["make it winter", "make it night"],
            "output_format": "jpeg",
            "output_compression": 90,
        },
    },
    "openai": {
        "summary": "One picture, as OpenAI's API has it",
        "value": {
            "images": [{"image_url": f"data:image/png;base64,{_PICTURES[0]}"}],
            "prompt": "make the sky blue",
        },
    },
    "mask": {
        "summary": "Only where the mask is white",
        "value": {"image": _PICTURES[1], "mask": _PICTURES[0], "prompt": "make the sky blue"},
    },
    "stream": {
        "summary": "As a stream, with previews",
        "value": {"image": _PICTURES[0], "prompt": "make the sky blue", "stream": True, "partial_images": 2},
    },
}
_GENERATION_EXAMPLES = {
    "openai": {
        "summary": "One picture, as OpenAI's API has it",
        "value": {"prompt": "a red house by a lake", "size": "1024x1024", "output_format": "png"},
    },
    "variants": {
        "summary": "Two variants with a transparent background",
        "value": {"prompt": "a paper boat, cut out", "n": 2, "seed": 7, "background": "transparent"},
    },
    "stream": {
        "summary": "As a stream, with previews",
        "value": {"prompt": "a red house by a lake", "stream": True, "partial_images": 2},
    },
}
