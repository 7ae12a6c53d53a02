"""Python clients of the server, blocking and asyncio, over httpx. They load neither torch nor Ray.

    ImageEdits, AsyncImageEdits
    └── EditError            what the server answered: the tree of serve_app.errors
        └── Unreachable      no answer came
            └── BrokenOff    a stream ended before its time

Edits are tried again after status 429 or 503 and after connections that fail, when `Retry-After` says where it does.
All tries of an edit carry one Idempotency-Key, so that the server does not begin again what it does already. A stream
has none; once it has begun, it is not tried again. Questions are asked once.
"""
