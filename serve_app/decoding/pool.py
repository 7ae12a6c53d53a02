"""A pool of processes that decode pictures. A process can be killed, but a thread that runs C code cannot.

No library is used: pebble and anyio.to_process run a Ray worker's main module in every process, which imports Ray, and
they pass pixels by pickle. The processes of pebble share one locked pipe, and all wait forever if one dies with the
lock.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.decoding import worker
from serve_app.decoding.files import DecodedPicture
from serve_app.errors import InvalidInput
from serve_app.images.geometry import Size, check_picture_size
from serve_app.images.pixels import shrunk_size, undecodable
from serve_app.request import Mask
from serve_app.settings import LimitSettings

_START_S = 120.0


class DecoderPool:
    """Pool of decoder processes, with as many processes as there are simultaneous calls. The calls block."""

    def __init__(self) -> None:
        self._idle: deque[_DecoderProcess] = deque()

    def warm(self) -> None:
        """Start a process, so that the first picture does not wait for it."""
        self._idle.append(_DecoderProcess())

    def close(self) -> None:
        """Kill the idle processes."""
        while self._idle:
            self._idle.pop().kill()

    def measure(self, data: bytes, index: int, limits: LimitSettings) -> Size:
        """Return the size of a picture file, from its header.

        Raises InvalidInput as `files.measure` does, and if measuring takes too long or kills the process.
        """
        response, _ = self._call(data, index, limits, "measure")
        return _checked_size(response["size"], index, limits)

    def decode(
        self, data: bytes, index: int, limits: LimitSettings, *, keep_alpha: bool = False, shrink: bool = True
    ) -> DecodedPicture:
        """Decode a picture file as `files.decode` does.

        Raises InvalidInput also if decoding takes too long or kills the process.
        """
        response, descriptors = self._call(data, index, limits, "picture", keep_alpha=keep_alpha, shrink=shrink)
        sent_size = size = _checked_size(response["sent_size"], index, limits)
        if shrink:
            size = shrunk_size(Size(*response["size"]), limits.shrink_above_pixels)
        channels = 4 if keep_alpha and response["channels"] == 4 else 3
        return DecodedPicture(_read(descriptors, (size.height, size.width, channels)), sent_size)

    def decode_mask(self, data: bytes, index: int, limits: LimitSettings) -> Mask:
        """Decode a mask file as `files.decode_mask` does. Raises InvalidInput as `decode`."""
        response, descriptors = self._call(data, index, limits, "mask")
        size = _checked_size(response["size"], index, limits)
        # Compared, since a bool of another byte than 0 and 1 is neither.
        changes: Mask = _read(descriptors, (size.height, size.width)) != 0
        return changes

    def _call(
        self, data: bytes, index: int, limits: LimitSettings, task: worker.Task, **options: bool
    ) -> tuple[dict[str, Any], list[int]]:
        process = self._take()
        request = {"limits": limits.model_dump(mode="json"), "index": index, "task": task, "options": options}
        try:
            response = process.call(data, request, limits.decode_timeout_s)
        except TimeoutError:
            process.kill()
            raise undecodable(index, f"it takes longer than {limits.decode_timeout_s:g} s to decode") from None
        except (OSError, EOFError):
            process.kill()
            raise undecodable(index, "the file is damaged or incomplete") from None
        except BaseException:
            process.kill()
            raise
        self._idle.append(process)
        if "refusal" in response[0]:
            raise InvalidInput(response[0]["refusal"], param="images")
        return response

    def _take(self) -> "_DecoderProcess":
        """Take the process that was used last, or start one. A process that died while idle fails no picture."""
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            process.kill()
        return _DecoderProcess()


DECODERS = DecoderPool()
"""The pool of this process, which all its applications share."""
atexit.register(DECODERS.close)


# glibc keeps freed memory for the next picture: allocating it again costs as much as decoding a small picture.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


def _environment() -> dict[str, str]:
    """Return an environment without API keys, for a process that reads untrusted files."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1", **_KEEP_MEMORY}


class _DecoderProcess:
    """A decoder process and the socket to it. Raises RuntimeError if the process does not start."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # libtiff and other libraries write a line for every irregularity of a file.
                stderr=subprocess.DEVNULL,
            )
        self._channel.settimeout(_START_S)
        try:
            ready = self._channel.recv(len(worker.READY))
        except OSError:
            ready = b""
        if ready != worker.READY:
            self.kill()
            raise RuntimeError(f"a decoder process did not start within {_START_S:g} s, or ended at once")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, data: bytes, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        """Send a picture file, and return the response with the file descriptors that came with it.

        Raises TimeoutError, and OSError or EOFError if the process dies.
        """
        self._channel.settimeout(timeout_s)
        descriptor = worker.memory_file(data)
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [descriptor])
        finally:
            os.close(descriptor)
        message, descriptors, _, _ = socket.recv_fds(self._channel, worker.MAX_MESSAGE_BYTES, 1)
        if not message:
            raise EOFError
        return json.loads(message), descriptors

    def kill(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _read(descriptors: list[int], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    pixels = np.empty(shape, np.uint8)
    [descriptor] = descriptors
    with open(descriptor, "rb", buffering=0) as file:
        if os.preadv(file.fileno(), [pixels.data.cast("B")], 0) != pixels.nbytes:
            raise RuntimeError("a decoder process sent fewer bytes than the picture has")
    return pixels


def _checked_size(sides: list[int], index: int, limits: LimitSettings) -> Size:
    size = Size(*sides)
    check_picture_size(size, index, limits)
    return size
