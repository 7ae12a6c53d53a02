"""The program of a decoder process: picture files in, pixels out. What a file does to Pillow's C code it does here.

`decoders` starts it with the descriptor of a SOCK_SEQPACKET socket as its only argument. A question is JSON, `limits`,
`index` and `measure`, with the file as a descriptor. An answer is JSON with `refusal`, a message for the caller, or
with `size`, width and height; unless only that was asked, the RGB bytes come with it, as a descriptor too.
"""

import json
import math
import os
import resource
import signal
import socket
import sys
from typing import Any

import PIL.AvifImagePlugin
import PIL.Image

from serve_app.errors import InvalidInput
from serve_app.images import Size, decode, measure
from serve_app.settings import LimitSettings

READY = b"ready"
MAX_MESSAGE_BYTES = 16 * 1024

# The process that asks keeps the time; this is for where it has died meanwhile.
_MARGIN_S = 5


def main(channel: socket.socket) -> None:
    """Answer until the other end is closed, which it is when its process ends, however that ends."""
    # Ctrl-C reaches this process too where the server runs in a terminal, and edits that have begun are finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The stack of a thread is memory too, and pictures are decoded side by side already.
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    PIL.Image.init()
    own_bytes = _address_space_bytes()
    channel.send(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1)
        if not message:
            return
        question = json.loads(message)
        limits = LimitSettings.model_validate(question["limits"])
        _bound(limits, own_bytes)
        answer, pixels = _answer(_contents(descriptors[0]), question["index"], limits, question["measure"])
        signal.alarm(0)
        socket.send_fds(channel, [json.dumps(answer).encode()], pixels)
        for descriptor in pixels:
            os.close(descriptor)


def _bound(limits: LimitSettings, own_bytes: int) -> None:
    """Bound the memory of this process; and its time, by a signal that ends it where it stands, in C code too."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own_bytes + limits.max_decoder_bytes, hard))
    signal.alarm(math.ceil(limits.decode_timeout_s) + _MARGIN_S)


def _answer(data: bytes, index: int, limits: LimitSettings, only_size: bool) -> tuple[dict[str, Any], list[int]]:
    try:
        if only_size:
            return _size(measure(data, index, limits)), []
        pixels = decode(data, index, limits)
    except InvalidInput as error:
        return {"refusal": error.message}, []
    height, width, _ = pixels.shape
    return _size(Size(width, height)), [in_memory(pixels.data.cast("B"))]


def _size(size: Size) -> dict[str, Any]:
    return {"size": [size.width, size.height]}


def in_memory(data: bytes | memoryview) -> int:
    """The descriptor of a file in memory that holds `data`."""
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
