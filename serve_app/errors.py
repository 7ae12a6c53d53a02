"""Every error a caller can meet, as one tree. No HTTP and no Ray in here: `status` is only a number.

    EditError
    ├── InvalidInput            400  INVALID_INPUT           fields, bodies, request, images, pipeline
    ├── Unauthorized            401  UNAUTHORIZED            auth
    ├── NotFound                404  NOT_FOUND               error_bodies, jobs
    │   └── ModelNotFound       404  MODEL_NOT_FOUND         fields, http
    ├── MethodNotAllowed        405  METHOD_NOT_ALLOWED      error_bodies
    ├── UploadTooSlow           408  REQUEST_TIMEOUT         body, while it is read
    ├── PayloadTooLarge         413  PAYLOAD_TOO_LARGE       body, while it is read
    ├── UnsupportedMediaType    415  UNSUPPORTED_MEDIA_TYPE  form
    ├── IdempotencyKeyReused    422  IDEMPOTENCY_KEY_REUSED  idempotency
    ├── TooManySamples          429  RATE_LIMITED            engine, with `retry_after_s`
    ├── GenerationError         500  GENERATION_ERROR        pipeline, engine: this request only
    │   ├── OutOfMemory                                      pipeline: the engine halves the batch and tries again
    │   ├── NotFinite                                        pipeline: a sample turned into NaN or infinity
    │   └── DeviceLost                                       pipeline: the device is unusable, the replica must go
    ├── Overloaded              503  OVERLOADED              engine, jobs, budget, idempotency, with `retry_after_s`
    ├── NotReady                503  NOT_READY               http: no replica has a warm model
    │   └── ReplicaStopping                                  engine: another replica, or its successor, takes it
    └── DeadlineExceeded        504  TIMEOUT                 engine, ingress

An error crosses Ray by pickle, so constructor arguments other than the message live in `__dict__`. `param` and
`retry_after_s` are deliberately no class attributes: the class that Ray 2.60 raises on the other side forwards to the
original error only those attributes that its bases lack.
"""

RETRY_AFTER_S = 5
"""What `Retry-After` says where nothing better is known, in seconds."""


class EditError(Exception):
    """Base of all errors. `message` is written for the caller and never holds a path, a host or a traceback."""

    status: int = 500
    code: str = "GENERATION_ERROR"
    type: str = "server_error"
    # As the README and /openapi.json tell it.
    when: str = ""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidInput(EditError):
    """The caller's request cannot be honoured; `param` names the field."""

    status, code, type = 400, "INVALID_INPUT", "invalid_request_error"
    when = "a field or a picture cannot be used; `param` names the field"


class Unauthorized(EditError):
    status, code, type = 401, "UNAUTHORIZED", "authentication_error"
    when = "keys are set and none was sent that fits; with `WWW-Authenticate`"


class NotFound(EditError):
    status, code, type = 404, "NOT_FOUND", "invalid_request_error"
    when = "nothing is served at this path, or there is no such job"


class ModelNotFound(NotFound):
    code = "MODEL_NOT_FOUND"
    when = "`model` is neither the served name nor an alias"


class MethodNotAllowed(EditError):
    status, code, type = 405, "METHOD_NOT_ALLOWED", "invalid_request_error"
    when = "the path exists, the method does not; with `Allow`"


class UploadTooSlow(EditError):
    status, code, type = 408, "REQUEST_TIMEOUT", "invalid_request_error"
    when = "the body comes too slowly; the connection is closed"


class PayloadTooLarge(EditError):
    status, code, type = 413, "PAYLOAD_TOO_LARGE", "invalid_request_error"
    when = "a file, a text field or the whole body is over its limit; refused while it arrives"


class UnsupportedMediaType(EditError):
    status, code, type = 415, "UNSUPPORTED_MEDIA_TYPE", "invalid_request_error"
    when = "the body is neither multipart/form-data nor application/json"


class IdempotencyKeyReused(EditError):
    """One key means one edit: whoever asks for another one takes another key."""

    status, code, type = 422, "IDEMPOTENCY_KEY_REUSED", "invalid_request_error"
    when = "the same `Idempotency-Key` came before with another body"


class TooManySamples(EditError):
    """One caller has as much in work as it may; `retry_after_s` is always set."""

    status, code, type = 429, "RATE_LIMITED", "rate_limit_error"
    when = "this key has `engine.max_caller_samples` outputs in work; with `Retry-After`"


_GENERATION_FAILED = "Image generation failed: "


class GenerationError(EditError):
    """The model failed on this request. The message always begins with `Image generation failed: `."""

    when = "the model failed on this request, out of memory included; its neighbours go on"

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
    """The device or the engine is gone: nothing on this replica can succeed any more."""


class Overloaded(EditError):
    """The bounded queue is full, or memory; `retry_after_s` is always set."""

    status, code = 503, "OVERLOADED"
    when = (
        "the queue is full, too much is uploaded, too many connections are open, or no more jobs or idempotency keys "
        "are kept; with `Retry-After`"
    )


class NotReady(EditError):
    """`retry_after_s` is always set."""

    status, code = 503, "NOT_READY"
    when = "no replica with a warm model takes edits; with `Retry-After`"


class ReplicaStopping(NotReady):
    """A replica that takes nothing new: it stops, or has lost its device. Nothing has been done yet."""


class DeadlineExceeded(EditError):
    status, code = 504, "TIMEOUT"
    when = "the deadline `limits.request_timeout_s` passed; its work is dropped"

    @classmethod
    def after(cls, seconds: float) -> "DeadlineExceeded":
        """Of an edit that was given so long."""
        return cls(f"The edit was not done within {seconds:g} s")


def from_body(
    code: str, message: str, *, status: int, param: str | None = None, retry_after_s: int | None = None
) -> EditError:
    """The error that a server told in its body. A code that is not in the tree becomes an EditError of that status."""
    cls = _by_code().get(code, EditError)
    if issubclass(cls, GenerationError):
        return cls(message.removeprefix(_GENERATION_FAILED))
    error = cls(message, param=param, retry_after_s=retry_after_s)
    if cls is EditError:
        error.status, error.code = status, code
    return error


def _by_code() -> dict[str, type[EditError]]:
    """The class of each code, the uppermost where several share it."""
    top = EditError.__subclasses__()
    return {cls.code: cls for cls in [*(leaf for cls in top for leaf in cls.__subclasses__()), *top]}
