"""Every error that a caller can get, as one tree. No HTTP and no Ray here: `status` is only a number.

    EditError                                                raised in
    ├── InvalidInput            400  INVALID_INPUT           forms, api, request, images, decoding.pool, models.pipeline
    ├── Unauthorized            401  UNAUTHORIZED            api.auth
    ├── Forbidden               403  FORBIDDEN               api.cross_origin
    ├── NotFound                404  NOT_FOUND               responses.errors, jobs.store, request
    │   └── ModelNotFound       404  MODEL_NOT_FOUND         forms.fields, api.app
    ├── MethodNotAllowed        405  METHOD_NOT_ALLOWED      responses.errors
    ├── UploadTooSlow           408  REQUEST_TIMEOUT         forms.upload, while the body is read
    ├── PayloadTooLarge         413  PAYLOAD_TOO_LARGE       forms.upload, while the body is read
    ├── UnsupportedMediaType    415  UNSUPPORTED_MEDIA_TYPE  forms.form
    ├── IdempotencyKeyReused    422  IDEMPOTENCY_KEY_REUSED  idempotency.runner
    ├── TooManySamples          429  RATE_LIMITED            engine.admission
    ├── GenerationError         500  GENERATION_ERROR        engine.admission, deployments.retries, jobs.store
    │   ├── OutOfMemory                                      models.device: the engine retries with half the batch
    │   ├── NotFinite                                        models.pipeline: a sample holds NaN or infinity
    │   └── DeviceLost                                       models.device, engine: the replica has to be replaced
    ├── Overloaded              503  OVERLOADED              engine.admission, store.leases,
    │   │                                                    forms.memory, api.load_shedding, api.proxy_connection
    │   └── TooMuchWork                                      engine.admission: an edit with less work may find room
    ├── NotReady                503  NOT_READY               api.app, api.load_shedding: no replica has a warm model
    │   └── ReplicaStopping                                  engine.admission: retry at another replica
    ├── StoreUnavailable        503  STORE_UNAVAILABLE       store, deployments.store
    └── DeadlineExceeded        504  TIMEOUT                 engine.admission, forms.form, deployments.retries
        └── TakesTooLong                                     engine.admission: not even on an idle server

An error crosses Ray by pickle, so constructor arguments other than the message are kept in `__dict__`. `param` and
`retry_after_s` are deliberately not class attributes: the class that Ray 2.60 raises on the other side forwards to the
original error only the attributes that its own bases lack.
"""

RETRY_AFTER_S = 5
"""Seconds that `Retry-After` names if no better estimate exists."""


class EditError(Exception):
    """Base of all errors. `message` is written for the caller and contains no path, no host and no traceback."""

    status: int = 500
    code: str = "GENERATION_ERROR"
    type: str = "server_error"
    # The text of the error tables in the documentation and in /openapi.json.
    when: str = ""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidInput(EditError):
    """A field or a picture of the request that cannot be used; `param` names the field."""

    status, code, type = 400, "INVALID_INPUT", "invalid_request_error"
    when = "a field or a picture cannot be used; `param` names the field"


class Unauthorized(EditError):
    status, code, type = 401, "UNAUTHORIZED", "authentication_error"
    when = "API keys are set and the request has no valid one; with `WWW-Authenticate`"


class Forbidden(EditError):
    """A request that a page of another site has sent, or that names a host which is not this server."""

    status, code, type = 403, "FORBIDDEN", "permission_error"
    when = "a page of another origin sent the request, or its `Host` is not a name of this server"


class NotFound(EditError):
    status, code, type = 404, "NOT_FOUND", "invalid_request_error"
    when = "the path does not exist, the model makes no pictures from text alone, or the caller has no such job"


class ModelNotFound(NotFound):
    code = "MODEL_NOT_FOUND"
    when = "`model` is neither the served name nor an alias"


class MethodNotAllowed(EditError):
    status, code, type = 405, "METHOD_NOT_ALLOWED", "invalid_request_error"
    when = "the path exists, but not with this method; with `Allow`"


class UploadTooSlow(EditError):
    status, code, type = 408, "REQUEST_TIMEOUT", "invalid_request_error"
    when = "the body arrives too slowly; the connection is closed"


class PayloadTooLarge(EditError):
    status, code, type = 413, "PAYLOAD_TOO_LARGE", "invalid_request_error"
    when = "a file, a text field or the whole body exceeds its limit; refused while it arrives"


class UnsupportedMediaType(EditError):
    status, code, type = 415, "UNSUPPORTED_MEDIA_TYPE", "invalid_request_error"
    when = "the body is neither multipart/form-data nor application/json"


class IdempotencyKeyReused(EditError):
    """An idempotency key that belongs to another edit: each edit needs its own key."""

    status, code, type = 422, "IDEMPOTENCY_KEY_REUSED", "invalid_request_error"
    when = "the same `Idempotency-Key` was sent before with another body"


class TooManySamples(EditError):
    """More samples than one caller may have in the engine; `retry_after_s` is always set."""

    status, code, type = 429, "RATE_LIMITED", "rate_limit_error"
    when = "this key would have more than `engine.max_caller_samples` unfinished outputs; with `Retry-After`"


_GENERATION_FAILED = "Image generation failed: "


class GenerationError(EditError):
    """A failure of the model on this request. The message always begins with `Image generation failed: `."""

    when = "the model failed on this request, or ran out of memory; other requests in the batch continue"

    def __init__(self, reason: str) -> None:
        super().__init__(_GENERATION_FAILED + reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["GenerationError"], tuple[str]]:
        return type(self), (self.reason,)


class OutOfMemory(GenerationError):
    pass


class NotFinite(GenerationError):
    pass


class DeviceLost(GenerationError):
    """A device or an engine that is unusable: nothing on this replica can succeed any more."""


class Overloaded(EditError):
    """A limit of the server's memory, queue or connections is reached; `retry_after_s` is always set.

    `refused_s`: for how many more seconds every edit is refused; 0 if another one may find room.
    """

    refused_s: float = 0.0
    status, code = 503, "OVERLOADED"
    when = (
        "the queue is full, or holds more work than can be done before the edit's deadline; too many bytes are being "
        "uploaded, too many connections are open, or the store of jobs or idempotency keys is full; with `Retry-After`"
    )


class TooMuchWork(Overloaded):
    """Too much work waits for this edit to be done before its deadline: one with less work may still be accepted."""


class NotReady(EditError):
    """No replica with a warm model accepts edits; `retry_after_s` is always set."""

    status, code = 503, "NOT_READY"
    when = "no replica with a warm model accepts edits; with `Retry-After`"


class ReplicaStopping(NotReady):
    """The replica is stopping or has lost its device, and has not begun this edit: another replica may run it."""


class StoreUnavailable(EditError):
    """The store of jobs and idempotency keys does not answer; `retry_after_s` is always set."""

    status, code = 503, "STORE_UNAVAILABLE"
    when = (
        "the store of jobs, or that of their results, does not answer; edits without `async` and without "
        "`Idempotency-Key` go on; with `Retry-After`"
    )


class DeadlineExceeded(EditError):
    status, code = 504, "TIMEOUT"
    when = "the deadline `limits.request_timeout_s` passed; the edit is cancelled"

    @classmethod
    def after(cls, seconds: float) -> "DeadlineExceeded":
        """Return the error of an edit whose deadline was `seconds` after its arrival."""
        return cls(f"The edit was not done within {seconds:g} s")


class TakesTooLong(DeadlineExceeded):
    """An edit that was not begun, since it takes longer than its deadline allows on an idle server too."""

    @classmethod
    def of(cls, work_s: float, allowed_s: float) -> "TakesTooLong":
        """Return the error of an edit that takes at least `work_s`, of `allowed_s`; both in seconds."""
        return cls(
            f"This edit takes at least {work_s:.3g} s, and its deadline is {allowed_s:.3g} s after its arrival. Ask "
            "for fewer steps, a smaller size or fewer outputs"
        )


def from_body(
    code: str, message: str, *, status: int, param: str | None = None, retry_after_s: int | None = None
) -> EditError:
    """Return the error that a server's error body describes. An unknown code becomes an EditError of that status."""
    cls = _by_code().get(code, EditError)
    if issubclass(cls, GenerationError):
        return cls(message.removeprefix(_GENERATION_FAILED))
    error = cls(message, param=param, retry_after_s=retry_after_s)
    if cls is EditError:
        error.status, error.code = status, code
    return error


def _by_code() -> dict[str, type[EditError]]:
    """Return the class of each code; of classes that share a code, the base class."""
    top = EditError.__subclasses__()
    return {cls.code: cls for cls in [*(leaf for cls in top for leaf in cls.__subclasses__()), *top]}
