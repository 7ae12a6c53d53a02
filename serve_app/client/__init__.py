"""Python clients of the server, blocking and asyncio, over httpx, without torch and Ray.

Public names, which `serve_app` exports: ImageEdits, AsyncImageEdits, EditOptions, GenerationOptions, Output,
StreamedOutput, StreamedPreview, Unreachable and BrokenOff. All other names of this package may change.

Both clients raise:

    EditError            the error that the server answered with; serve_app.errors has its subclasses
    └── Unreachable      the server did not answer
        └── BrokenOff    a stream ended before its last event

Edits are retried after status 429 or 503 and after connection failures, at the time that `Retry-After` names if the
answer has it. All attempts of an edit carry the same Idempotency-Key, so that the server does not run the edit twice. A
stream has no such key and is not retried once it has begun. The calls `models` and `ready` are never retried.
"""
