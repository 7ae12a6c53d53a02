"""Pictures are decoded in processes of their own, which can be ended: a thread in C code cannot.

Own code, since the libraries for this (pebble, anyio.to_process) run the main module of a Ray worker in every process,
which imports Ray, and hand pixels over by pickle; pebble's processes share one locked pipe, on which all of them wait
when one dies with the lock.
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

from serve_app.decoding import worker
from serve_app.errors import InvalidInput
from serve_app.images import Size, check_picture_size, undecodable
from serve_app.request import Pixels
from serve_app.settings import LimitSettings

_START_S = 120.0


class DecoderPool:
    """Decoder processes, as many as threads call at once. The calls block."""

    def __init__(self) -> None:
        self._idle: deque[_DecoderProcess] = deque()

    def warm(self) -> None:
        """Start a process, so that the first picture need not wait for it."""
        self._idle.append(_DecoderProcess())

    def close(self) -> None:
        """End the processes that have nothing to do."""
        while self._idle:
            self._idle.pop().end()

    def measure(self, data: bytes, index: int, limits: LimitSettings) -> Size:
        """The size that the header tells. Raises InvalidInput as `images.measure`, and where it takes too long."""
        answer, _ = self._ask(data, index, limits, measure=True)
        return _checked_size(answer, index, limits)

    def decode(self, data: bytes, index: int, limits: LimitSettings) -> Pixels:
        """As `images.decode`. Raises InvalidInput also where it takes too long, or the process does not survive it."""
        answer, descriptors = self._ask(data, index, limits, measure=False)
        size = _checked_size(answer, index, limits)
        pixels = np.empty((size.height, size.width, 3), np.uint8)
        [descriptor] = descriptors
        with open(descriptor, "rb", buffering=0) as file:
            if os.preadv(file.fileno(), [pixels.data.cast("B")], 0) != pixels.nbytes:
                raise RuntimeError("a decoder process sent less than it told")
        return pixels

    def _ask(self, data: bytes, index: int, limits: LimitSettings, measure: bool) -> tuple[dict[str, Any], list[int]]:
        process = self._take()
        try:
            answer = process.ask(data, index, limits, measure)
        except TimeoutError:
            process.end()
            raise undecodable(index, f"it takes longer than {limits.decode_timeout_s:g} s to decode") from None
        except (OSError, EOFError):
            process.end()
            raise undecodable(index, "the file is damaged or incomplete") from None
        except BaseException:
            process.end()
            raise
        self._idle.append(process)
        return answer

    def _take(self) -> "_DecoderProcess":
        """The one that was used last, or a new one. To have died with nothing to do is no picture's fault."""
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            process.end()
        return _DecoderProcess()


DECODERS = DecoderPool()
"""Those of this process: however many applications are made in it, they share them."""
atexit.register(DECODERS.close)


# Memory that is kept for the next picture: to fetch it anew costs as much as to decode a small one.
_KEEP = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


def _environment() -> dict[str, str]:
    """No keys for a process that reads what strangers send."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1", **_KEEP}


class _DecoderProcess:
    """One process and the socket to it. Raises RuntimeError where it does not start."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # libtiff and others write a line for each oddity of a file.
                stderr=subprocess.DEVNULL,
            )
        self._channel.settimeout(_START_S)
        try:
            ready = self._channel.recv(len(worker.READY))
        except OSError:
            ready = b""
        if ready != worker.READY:
            self.end()
            raise RuntimeError("a decoder process did not start")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes, index: int, limits: LimitSettings, measure: bool) -> tuple[dict[str, Any], list[int]]:
        """Its answer and the descriptors that came with it. Raises TimeoutError; OSError or EOFError where it died."""
        question = {"limits": limits.model_dump(mode="json"), "index": index, "measure": measure}
        self._channel.settimeout(limits.decode_timeout_s)
        descriptor = worker.in_memory(data)
        try:
            socket.send_fds(self._channel, [json.dumps(question).encode()], [descriptor])
        finally:
            os.close(descriptor)
        message, descriptors, _, _ = socket.recv_fds(self._channel, worker.MAX_MESSAGE_BYTES, 1)
        if not message:
            raise EOFError
        return json.loads(message), descriptors

    def end(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _checked_size(answer: dict[str, Any], index: int, limits: LimitSettings) -> Size:
    if "refusal" in answer:
        raise InvalidInput(answer["refusal"], param="images")
    size = Size(*answer["size"])
    check_picture_size(size, index, limits)
    return size
