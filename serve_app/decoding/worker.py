"""The program of a decoder process: picture files in, pixels out. A file that crashes Pillow's C code crashes it alone.

`decoding.pool` starts the program with the descriptor of a SOCK_SEQPACKET socket as its only argument. A request is
JSON with `limits`, `index`, the `task`, and for a picture the options of `files.decode`; a file descriptor of the
picture file comes with it. A response is JSON with either `refusal`, a message for the caller, or `size`, width and
height. That of a picture also has `channels` (3 or 4) and `sent_size`. A file descriptor of its bytes comes with it;
those of a mask are 0 and 1.
"""

import json
import math
import os
import resource
import signal
import socket
import sys
from typing import Any, Literal

import PIL.Image

from serve_app.decoding.files import decode, decode_mask, measure, prepare_process
from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size
from serve_app.request import size_of
from serve_app.settings import LimitSettings

READY = b"ready"
MAX_MESSAGE_BYTES = 16 * 1024

Task = Literal["measure", "picture", "mask"]

# The server enforces the time limit; the alarm of this process, later by this margin, acts if the server has died.
_MARGIN_S = 5


def main(channel: socket.socket) -> None:
    """Answer requests until the server closes the channel, or ends and so closes it."""
    # Ctrl-C in the server's terminal also reaches this process, while the server still finishes running edits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The stacks of threads would need memory, and the pool already decodes several pictures at once.
    prepare_process()
    PIL.Image.init()
    own_bytes = _address_space_bytes()
    channel.send(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1)
        if not message:
            return
        request = json.loads(message)
        limits = LimitSettings.model_validate(request["limits"])
        _limit_resources(limits, own_bytes)
        response, pixels = _respond(_contents(descriptors[0]), limits, request)
        signal.alarm(0)
        socket.send_fds(channel, [json.dumps(response).encode()], pixels)
        for descriptor in pixels:
            os.close(descriptor)


def _limit_resources(limits: LimitSettings, own_bytes: int) -> None:
    """Limit the memory of this process, and its time: the alarm's signal ends it even while it runs C code."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own_bytes + limits.max_decoder_bytes, hard))
    signal.alarm(math.ceil(limits.decode_timeout_s) + _MARGIN_S)


def _respond(data: bytes, limits: LimitSettings, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    task: Task = request["task"]
    try:
        if task == "measure":
            return {"size": _sides(measure(data, request["index"], limits))}, []
        if task == "mask":
            mask = decode_mask(data, request["index"], limits)
            return {"size": _sides(size_of(mask))}, [memory_file(mask.data.cast("B"))]
        picture = decode(data, request["index"], limits, **request["options"])
    except InvalidInput as error:
        return {"refusal": error.message}, []
    pixels = picture.pixels
    response = {"size": _sides(size_of(pixels)), "channels": pixels.shape[2], "sent_size": _sides(picture.sent_size)}
    return response, [memory_file(pixels.data.cast("B"))]


def _sides(size: Size) -> list[int]:
    return [size.width, size.height]


def memory_file(data: bytes | memoryview) -> int:
    """Create a file in memory that contains `data`, and return its descriptor."""
    descriptor = os.memfd_create("picture")
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return descriptor


def _contents(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _address_space_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
