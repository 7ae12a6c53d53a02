"""`python -m benchmarks.engine.pauses`: how long an edit waits for the prefix of another one, Qwen-Image-2.1.

One edit of a miniature with random weights runs, and another one with many references joins: its prefix is computed in
pieces, as the server does, or in one go.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

from benchmarks.edits import scene
from benchmarks.engine.prefixes import ROUNDS, miniature
from benchmarks.markdown import table
from serve_app.engine.calibration import calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import Sample
from serve_app.errors import EditError
from serve_app.images.geometry import Size
from serve_app.models.pipeline import Encoding, Prepared
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest
from serve_app.settings import EngineSettings

CONTENDERS: Mapping[str, bool] = {"in pieces": False, "in one go": True}
_REFERENCES = 9
_STEPS = 150
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Pause:
    """The longest pauses of the edit that runs, in steps of it: for prefill alone, and for encoding alone.

    `prefills`: in how many calls the prefix of the other one was computed.
    """

    prefill_steps: float
    encode_steps: float
    prefills: int


class _Timed(StepwiseQwenImage21Pipeline):
    """Notes when each call of a stage began and ended, in seconds."""

    is_whole = False
    encodes: list[tuple[float, float]]
    prefills: list[tuple[float, float]]

    def encode(self, prepared: Sequence[Prepared]) -> list[Encoding]:
        start_s = time.perf_counter()
        encodings = super().encode(prepared)
        self.encodes.append((start_s, time.perf_counter()))
        return encodings

    def prefill(self, encodings: Sequence[Encoding], pieces: Sequence[int] | None = None) -> list[int]:
        start_s = time.perf_counter()
        left = super().prefill(encodings, None if self.is_whole else pieces)
        self.prefills.append((start_s, time.perf_counter()))
        return left


def measure(references: int = _REFERENCES, rounds: int = ROUNDS) -> dict[str, list[Pause]]:
    """Return the pauses of each contender. They take turns, each in a process of its own."""
    found: dict[str, list[Pause]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, is_whole in CONTENDERS.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found[name].append(process.submit(_run, is_whole, references).result())
    return found


def _run(is_whole: bool, references: int) -> Pause:
    pipeline = miniature()
    pipeline.__class__ = _Timed
    assert isinstance(pipeline, _Timed)
    pipeline.is_whole, pipeline.encodes, pipeline.prefills = is_whole, [], []
    steps_s: list[float] = []

    def note(samples: Sequence[Sample], seconds: float) -> None:
        if len(samples) == 1:
            steps_s.append(seconds)

    calibration = calibrate(pipeline, max_samples=1, default_guidance=1.0)
    model = ServedModel(pipeline, calibration, max_samples=8, sampling=SamplingDefaults(_STEPS, 1.0))
    engine = EditEngine(model, EngineSettings(batch_tokens=10**9, order="fifo"), timeout_s=_TIMEOUT_S, on_forward=note)
    engine.start()
    side = Size(256, 256)
    [running] = engine.submit([EditRequest(images=[scene(1, side)], prompt="older", num_inference_steps=_STEPS)])
    while len(steps_s) < 5:
        time.sleep(0.01)
    pipeline.encodes.clear()
    pipeline.prefills.clear()
    pictures = [scene(picture, side) for picture in range(references + 1)]
    [joining] = engine.submit(
        [EditRequest(images=pictures[:1], references=pictures[1:], prompt="at night", num_inference_steps=1)]
    )
    assert not isinstance(running, EditError)
    assert not isinstance(joining, EditError)
    joining.result(_TIMEOUT_S)
    running.cancel()
    engine.stop()
    step_s = median(steps_s)
    prefill_s, encode_s = (
        max(end_s - start_s for start_s, end_s in spans) for spans in (pipeline.prefills, pipeline.encodes)
    )
    return Pause(prefill_s / step_s, encode_s / step_s, len(pipeline.prefills))


def page(references: int, found: Mapping[str, Sequence[Pause]]) -> str:
    """Return a table in Markdown: the medians of all rounds."""
    rows = [
        [
            name,
            f"{median(pause.prefill_steps for pause in pauses):.1f}",
            f"{median(pause.encode_steps for pause in pauses):.1f}",
        ]
        for name, pauses in found.items()
    ]
    header = [f"prefix of {references + 1} images", "longest pause for prefill, steps", "for encoding, steps"]
    return "\n".join(table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.pauses", description=__doc__)
    parser.add_argument("--references", type=int, default=_REFERENCES, help="beside the image (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts (%(default)s)")
    arguments = parser.parse_args()
    print(page(arguments.references, measure(arguments.references, arguments.rounds)))


if __name__ == "__main__":
    main()
