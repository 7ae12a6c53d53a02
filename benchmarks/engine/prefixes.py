"""`python -m benchmarks.engine.prefixes`: edits of few pictures on a miniature of Qwen-Image-2.1, and diffusers' own.

The miniature has random weights, on which time does not depend. All edits arrive at once.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import mean, median

import PIL.Image
import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel

from benchmarks.edits import scene
from benchmarks.markdown import table
from serve_app.engine.calibration import Calibration, calibrate
from serve_app.engine.engine import EditEngine
from serve_app.engine.model import ServedModel
from serve_app.engine.sampling import SamplingDefaults
from serve_app.errors import EditError
from serve_app.images.geometry import Size
from serve_app.models.prefix_cache import PrefixCache
from serve_app.models.qwen_image_21 import StepwiseQwenImage21Pipeline
from serve_app.request import EditRequest
from serve_app.settings import EngineSettings, Sharing
from training.parts import build_tokenizer
from training.qwen_image_21 import build_miniature

ROUNDS = 3
_SIDE = 256
_PICTURES, _STEPS = 4, 8
_TIMEOUT_S = 600
CONTENDERS: Mapping[str, Sharing | None] = {
    "this server": "caller",
    "this server, `share_prefixes: none`": "none",
    "diffusers, one after another": None,
}
_PROMPTS = ("make it blue", "a sketch of it", "at night, with many stars above the hills", "older")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of all edits, in seconds: until the last is done, and until each is in the mean."""

    total_s: float
    mean_s: float


def edits(pictures: int, steps: int) -> list[EditRequest]:
    """Return four edits of each picture, the pictures in turns."""
    return [
        EditRequest(images=[scene(picture, Size(_SIDE, _SIDE))], prompt=prompt, num_inference_steps=steps, seed=index)
        for index, (prompt, picture) in enumerate(
            (prompt, picture) for prompt in _PROMPTS for picture in range(pictures)
        )
    ]


def measure(pictures: int = _PICTURES, steps: int = _STEPS, rounds: int = ROUNDS) -> dict[str, list[Outcome]]:
    """Return the outcomes of each contender. They take turns, each in a process of its own, as a server has it."""
    found: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found[name].append(process.submit(_run, name, pictures, steps).result())
    return found


def _run(name: str, pictures: int, steps: int) -> Outcome:
    """Build the miniature, warm it up, and let a contender make all edits."""
    pipeline = miniature()
    sharing = CONTENDERS[name]
    if sharing is None:
        stock = _stock(pipeline)
        _in_turn(stock, edits(1, 1))
        return _in_turn(stock, edits(pictures, steps))
    calibration = calibrate(pipeline, max_samples=8, default_guidance=1.0)
    return _serve(pipeline, calibration, sharing, edits(pictures, steps))


def miniature() -> StepwiseQwenImage21Pipeline:
    torch.manual_seed(0)
    return build_miniature(build_tokenizer(_PROMPTS), layers=8, heads=8, text_width=64, native_area=_SIDE * _SIDE)


def _stock(pipeline: StepwiseQwenImage21Pipeline) -> QwenImage21Pipeline:
    """Return diffusers' pipeline on the same weights."""
    transformer = QwenImage21Transformer2DModel.from_config(pipeline.transformer.config).eval()
    transformer.load_state_dict(pipeline.transformer.state_dict())
    stock = QwenImage21Pipeline(
        pipeline.scheduler, pipeline.vae, pipeline.text_encoder, pipeline.processor, transformer
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def _serve(
    pipeline: StepwiseQwenImage21Pipeline, calibration: Calibration, sharing: Sharing, some: Sequence[EditRequest]
) -> Outcome:
    pipeline.share_prefixes, pipeline.prefixes = sharing, PrefixCache(10**9)
    model = ServedModel(pipeline, calibration, max_samples=8, sampling=SamplingDefaults(40, 1.0))
    engine = EditEngine(model, EngineSettings(), timeout_s=_TIMEOUT_S)
    engine.start()
    ends_s: list[float] = []
    start_s = time.perf_counter()
    answers = engine.submit(some)
    futures = [answer for answer in answers if not isinstance(answer, EditError)]
    for future in futures:
        future.add_done_callback(lambda _: ends_s.append(time.perf_counter() - start_s))
    for future in futures:
        future.result(_TIMEOUT_S)
    engine.stop()
    return Outcome(max(ends_s), mean(ends_s))


def _in_turn(stock: QwenImage21Pipeline, some: Sequence[EditRequest]) -> Outcome:
    ends_s: list[float] = []
    start_s = time.perf_counter()
    for edit in some:
        stock(
            image=[PIL.Image.fromarray(edit.images[0])],
            prompt=edit.prompt,
            num_inference_steps=edit.num_inference_steps,
            generator=torch.Generator().manual_seed(edit.seed),
            output_resolution=_SIDE,
        )
        ends_s.append(time.perf_counter() - start_s)
    return Outcome(ends_s[-1], mean(ends_s))


def page(found: Mapping[str, Sequence[Outcome]], pictures: int = _PICTURES, steps: int = _STEPS) -> str:
    """Return a section in Markdown: a table of the medians of all rounds, and what was measured."""
    count = pictures * len(_PROMPTS)
    medians = {
        name: [median(values) for values in zip(*((o.total_s, o.mean_s) for o in outcomes), strict=True)]
        for name, outcomes in found.items()
    }
    ours_s, *_ = next(iter(medians.values()))
    rows = [
        [name, f"{count / total_s:.2f}", f"{total_s / ours_s:.2f}", f"{mean_s:.2f}"]
        for name, (total_s, mean_s) in medians.items()
    ]
    header = [f"{count} edits at once", "edits a second", "ours is × as fast", "mean latency, s"]
    about = f"""## Edits of the same images, Qwen-Image-2.1

`python -m benchmarks.engine.prefixes --pictures {pictures} --steps {steps}`, a part of `make bench`: a miniature with
random weights, {len(_PROMPTS)} prompts for each of {pictures} images of {_SIDE} × {_SIDE} pixels, {steps} steps. All
edits arrive at once, without HTTP. The contenders take turns, each in a process of its own; medians of
{min(map(len, found.values()))} rounds. OMP_WAIT_POLICY is {os.environ.get("OMP_WAIT_POLICY", "not set")}."""
    return "\n".join([about, "", *table(header, rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.prefixes", description=__doc__)
    parser.add_argument("--pictures", type=int, default=_PICTURES, help="each with four prompts (%(default)s)")
    parser.add_argument("--steps", type=int, default=_STEPS, help="of each edit (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts (%(default)s)")
    arguments = parser.parse_args()
    found = measure(arguments.pictures, arguments.steps, arguments.rounds)
    print(page(found, arguments.pictures, arguments.steps))


if __name__ == "__main__":
    main()
