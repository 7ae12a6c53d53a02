"""Adapters (LoRA) that requests choose: each row of a packed forward has its own, or none.

diffusers and peft read the files. A Linear with adapters then runs its base once for all tokens, and adds to the tokens
of each row the low-rank products of that row's adapters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from serve_app.engine.sampling import AdapterScales
from serve_app.models.packed import Layout
from serve_app.settings import LoraSettings

Kind = Literal["image", "text", "output", "row", "time"]
"""What a Linear of the transformer runs over: the tokens of one kind, or one vector for each row.

`time`: as `row`, and with `zero_cond_t` once more for the time 0 of each row.
"""

# peft's name of the adapter that is being read.
_READING = "reading"
_WEIGHT_NAME = "pytorch_lora_weights.safetensors"

# By the beginning of a module's name; for those of a block, by what follows `transformer_blocks.N.`.
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("time_text_embed.", "time"),
    ("img_mod.", "time"),
    ("txt_mod.", "row"),
    ("norm_out.", "row"),
    ("proj_out", "output"),
    ("attn.add_", "text"),
    ("attn.to_add_out", "text"),
    ("txt_", "text"),
    ("attn.to_", "image"),
    ("img_", "image"),
)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a Linear's input that takes one adapter: `places`, and the `scales` there (places × 1)."""

    places: torch.Tensor
    scales: torch.Tensor


Shares = Mapping[Kind, Mapping[str, Share]]
"""For each kind of input, the share of every adapter in use."""


class Adapters:
    """The adapters of one transformer, and which rows of the present forward use them."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self.shares: Shares = {}

    @contextmanager
    def applied(self, shares: Shares) -> Iterator[None]:
        """Let the forwards inside use adapters as `shares` has it."""
        self.shares = shares
        try:
            yield
        finally:
            self.shares = {}


def share_out(rows: Sequence[AdapterScales], layout: Layout, zero_cond_t: bool) -> dict[Kind, dict[str, Share]]:
    """Return the shares of the adapters in a forward; `rows`: the adapters of each row of `layout`."""
    names = dict.fromkeys(name for scales in rows for name, _ in scales)
    device = layout.output_places.device
    ones = [1] * len(rows)
    parts: dict[Kind, tuple[list[int], Sequence[AdapterScales]]] = {
        "image": ([row.image_tokens for row in layout.rows], rows),
        "text": ([row.text_tokens for row in layout.rows], rows),
        "output": ([row.output_tokens for row in layout.rows], rows),
        "row": (ones, rows),
        # The rows of time 0 come after the others.
        "time": (2 * ones, [*rows, *rows]) if zero_cond_t else (ones, rows),
    }
    return {
        kind: {name: _share(name, lengths, scales, device) for name in names}
        for kind, (lengths, scales) in (parts.items() if names else ())
    }


def _share(name: str, lengths: Sequence[int], rows: Sequence[AdapterScales], device: torch.device) -> Share:
    """Return the share of one adapter; `lengths`: how many vectors each row has, end to end."""
    scales = torch.tensor([dict(scales).get(name, 0.0) for scales in rows]).repeat_interleave(torch.tensor(lengths))
    places = scales.nonzero().flatten()
    return Share(places.to(device), scales[places, None].to(device))


class AdaptedLinear(nn.Module):
    """A Linear, of any class, and the low-rank factors of its adapters by name."""

    def __init__(self, base: nn.Module, kind: Kind, adapters: Adapters) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        self._kind: Kind = kind
        self._adapters = adapters

    def add(self, name: str, down: torch.Tensor, up: torch.Tensor) -> None:
        """Add the factors of an adapter: `down` (rank × inputs), `up` (outputs × rank)."""
        self.down[name], self.up[name] = _frozen(down), _frozen(up)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(tokens)
        for name, share in self._adapters.shares.get(self._kind, {}).items():
            if name in self.down:
                product = self.up[name](self.down[name](tokens.index_select(0, share.places)))
                # In place: the result of a Linear belongs to nobody else. Other places keep every bit.
                result.index_add_(0, share.places, product * share.scales.to(product.dtype))
        return result


def _frozen(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear


# --- loading ------------------------------------------------------------------------------------------------------


Factors = tuple[torch.Tensor, torch.Tensor]
"""The product that an adapter adds to a Linear: down (rank × inputs) and up (outputs × rank)."""


def load_adapters(pipeline: Any, settings: Mapping[str, LoraSettings]) -> Adapters:
    """Read the adapters of the settings into the transformer of a pipeline, in place.

    Raises ValueError or OSError for one that cannot be served, with its name.
    """
    adapters = Adapters(tuple(settings))
    factors: dict[str, dict[str, Factors]] = {}
    for name, lora in settings.items():
        try:
            of_one = _read(pipeline, lora)
        except (ValueError, OSError) as error:
            raise ValueError(f"model.adapters.{name}: {error}") from None
        for path, pair in of_one.items():
            factors.setdefault(path, {})[name] = pair
    for path, by_name in factors.items():
        _adapt(pipeline.transformer, path, by_name, adapters)
    return adapters


def _adapt(transformer: nn.Module, path: str, factors: Mapping[str, Factors], adapters: Adapters) -> None:
    """Give one Linear of the transformer its adapters."""
    adapted = AdaptedLinear(transformer.get_submodule(path), _kind(path), adapters)
    for name, pair in factors.items():
        adapted.add(name, *pair)
    parent, _, child = path.rpartition(".")
    setattr(transformer.get_submodule(parent), child, adapted)


def _kind(path: str) -> Kind:
    part = path.split(".", 2)[2] if path.startswith("transformer_blocks.") else path
    return next(kind for prefix, kind in _KINDS if part.startswith(prefix))


def _read(pipeline: Any, lora: LoraSettings) -> dict[str, Factors]:
    """Return the factors of an adapter by the path of their Linear, of the transformer's type and on its device."""
    file = _file(lora)
    with safe_open(file, framework="pt") as weights:
        unserved = [key for key in weights.keys() if "dora_scale" in key or "magnitude" in key]  # noqa: SIM118
    if unserved:
        raise ValueError(f"{file.name} is a DoRA ({unserved[0]}), which cannot be added for one row; use a plain LoRA")
    state, metadata = pipeline.lora_state_dict(
        str(file.parent), weight_name=file.name, use_safetensors=True, return_lora_metadata=True
    )
    if unserved := [key for key in state if "lora" not in key]:
        raise ValueError(f"{file.name} is no LoRA: it has {unserved[0]}")
    downs = [key for key in state if "lora_A" in key]
    if halves := [key for key in downs if key.replace("lora_A", "lora_B") not in state]:
        raise ValueError(f"{file.name} is damaged: it lacks the other half of {halves[0]}")
    skeleton = _skeleton(pipeline.transformer)
    pipeline.load_lora_into_transformer(
        state, skeleton, adapter_name=_READING, metadata=metadata, low_cpu_mem_usage=True
    )
    read = {path: module for path, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    factors = {path: _factors(path, layer) for path, layer in read.items()}
    if len(factors) != len(downs):
        raise ValueError(
            f"only {len(factors)} of the {len(downs)} layers in {file.name} are layers of this model; is it made for "
            "another model?"
        )
    return factors


def _skeleton(transformer: Any) -> Any:
    """Return a transformer of the same layers, type and device, in which one number stands for all of a weight's.

    The layers of this one may be quantised, or have adapters, and peft has another class for each.
    """
    with init_empty_weights():
        skeleton = type(transformer).from_config(transformer.config)
    number = torch.zeros(1, dtype=transformer.dtype, device=transformer.device)
    for module in skeleton.modules():
        for name, weight in module.named_parameters(recurse=False):
            # Not on `meta`, to which peft (0.21) would move what it reads.
            setattr(module, name, nn.Parameter(number.expand(weight.shape), requires_grad=False))
    return skeleton


def _factors(path: str, layer: LoraLayer) -> Factors:
    if not isinstance(layer, LoraLinear):
        raise ValueError(f"{path} is a {type(layer).__name__}; only Linear layers may have adapters")
    down, up = (each.get_submodule(_READING).get_parameter("weight").detach() for each in (layer.lora_A, layer.lora_B))
    return down, up * layer.scaling[_READING]


def _file(lora: LoraSettings) -> Path:
    """Return the local file of an adapter, downloaded if it is on the hub."""
    folder = Path(lora.source)
    if not folder.is_dir():
        return Path(hf_hub_download(lora.source, lora.weight_name or _WEIGHT_NAME))
    if lora.weight_name is not None:
        return folder / lora.weight_name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} has {len(files)} .safetensors files; name one by weight_name")
    return files[0]
