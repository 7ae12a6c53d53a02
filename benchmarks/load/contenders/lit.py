"""LitServe with its dynamic batching, around the stock pipeline."""

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import litserve
import pybase64
from fastapi import Request

from benchmarks.load.contenders import program
from benchmarks.load.contenders.stock import Counter, StockEditor
from benchmarks.load.generator import PATH
from serve_app.decoding.files import decode
from serve_app.images.encoding import encode
from serve_app.request import EditRequest, EditResult
from serve_app.settings import AppSettings


class StockApi(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """The stock pipeline; LitServe gathers up to eight requests for one `predict`."""

    def __init__(self, settings: AppSettings, counter: Counter) -> None:
        super().__init__(max_batch_size=8, batch_timeout=0.1, api_path=PATH)
        self._settings = settings
        self._counter = counter

    def setup(self, device: str) -> None:
        self._editor = StockEditor(self._settings.model, self._counter)

    def decode_request(self, request: Request, **kwargs: Any) -> EditRequest:
        """Return the edit. LitServe passes the parsed form as `request`."""
        form: Any = request
        return EditRequest(
            images=[decode(form["images"].file.read(), 0, self._settings.limits).pixels],
            prompt=form["prompt"],
            n=int(form["n"]),
            size=form["size"],
            fit=form["fit"],
            num_inference_steps=int(form["num_inference_steps"]),
            seed=int(form["seed"]),
        )

    def batch(self, inputs: Sequence[EditRequest]) -> Sequence[EditRequest]:
        return inputs

    def predict(self, x: Sequence[EditRequest], **kwargs: Any) -> list[EditResult]:
        return self._editor.edit(x)

    def unbatch(self, output: list[EditResult]) -> list[EditResult]:
        return output

    def encode_response(self, output: EditResult, **kwargs: Any) -> dict[str, Any]:
        files = [encode(pixels, "png", 100) for variants in output.pixels for pixels in variants]
        return {"data": [{"b64_json": pybase64.b64encode_as_string(file)} for file in files]}


def main() -> None:
    arguments = program.parser(__doc__).parse_args()
    settings, counter = program.settings(arguments), Counter()

    def answer_commands() -> None:
        program.answer(arguments.answers, {"counts": lambda: asdict(counter.counts())})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=answer_commands, daemon=True).start()
    server = litserve.LitServer(
        StockApi(settings, counter), accelerator="cpu", timeout=settings.limits.request_timeout_s
    )
    server.run(program.HOST, arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
