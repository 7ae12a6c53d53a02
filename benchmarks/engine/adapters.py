"""`python -m benchmarks.engine.adapters`: what adapters of requests cost a step of four samples, on builtin:tiny."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict

from benchmarks.edits import scene
from benchmarks.markdown import table
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand
from serve_app.images.geometry import Size
from serve_app.models import loading
from serve_app.models.pipeline import SampleState, StepwisePipeline
from serve_app.request import EditRequest
from serve_app.settings import AdapterSettings, ModelSettings

_ROUNDS = 15
_NAMES = ("a", "b", "c", "d")
# Of four samples that step together.
MIXES: Mapping[str, Sequence[str]] = {
    "none": ("", "", "", ""),
    "one sample with an adapter": ("a", "", "", ""),
    "four samples with one adapter": ("a", "a", "a", "a"),
    "four samples with an adapter each": _NAMES,
}


def measure(rank: int, rounds: int = _ROUNDS) -> dict[str, float]:
    """Return the milliseconds of a step for each mix. Mixes take turns, and the fastest of all rounds counts."""
    pipeline, defaults = _load(rank)
    states = {name: _states(pipeline, defaults, adapters) for name, adapters in MIXES.items()}
    best = dict.fromkeys(MIXES, float("inf"))
    for _ in range(rounds):
        for name, some in states.items():
            start_s = time.perf_counter()
            pipeline.step(some)
            best[name] = min(best[name], 1000 * (time.perf_counter() - start_s))
    return best


def _load(rank: int) -> tuple[StepwisePipeline, SamplingDefaults]:
    """Return builtin:tiny with adapters of random weights on the attention and the feed-forward of every block."""
    plain = loading.load(ModelSettings())
    transformer = plain.pipeline.transformer
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    targets += ["net.0.proj", "net.2"]
    transformer.add_adapter(LoraConfig(r=rank, target_modules=targets, init_lora_weights=False))
    with tempfile.TemporaryDirectory() as folder:
        weights = get_peft_model_state_dict(transformer)
        type(plain.pipeline).save_lora_weights(folder, transformer_lora_layers=weights)
        source = AdapterSettings(source=str(Path(folder)))
        settings = ModelSettings(adapters=dict.fromkeys(_NAMES, source))
        model = loading.load(settings)
    return model.pipeline, SamplingDefaults.of(settings, 100, model.default_guidance)


def _states(pipeline: StepwisePipeline, defaults: SamplingDefaults, adapters: Sequence[str]) -> list[SampleState]:
    states = []
    for seed, names in enumerate(adapters):
        picture = scene(seed, Size(128, 128))
        request = EditRequest(images=[picture], prompt="make it blue", adapters=names, seed=seed)
        entry = expand(request, pipeline.geometry, defaults)
        [encoding] = pipeline.encode([pipeline.prepare(entry.conditions[0])])
        states.append(pipeline.start(encoding, entry.samples[0]))
    return states


def page(rank: int, found: Mapping[str, float]) -> str:
    """Return a table in Markdown."""
    alone = found["none"]
    rows = [[name, f"{ms:.1f}", f"{ms / alone:.2f}"] for name, ms in found.items()]
    return "\n".join(table([f"adapters of rank {rank}", "step of four samples, ms", "× without"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.adapters", description=__doc__)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (%(default)s)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of which the fastest counts (%(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(page(arguments.rank, measure(arguments.rank, arguments.rounds)))


if __name__ == "__main__":
    main()
