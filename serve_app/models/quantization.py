"""Which weights are quantised, to how many bytes, by which package and on which devices. Without torch.

Quantised are the Linear layers of the transformer's blocks and of the text encoder's language model: 99.8 % and 79 % of
the published ones. The autoencoder is small, and stays as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serve_app.settings import GGUF, NO_QUANTIZATION, ModelSettings

PARTS = ("transformer", "text_encoder")
"""The parts whose weights may be quantised."""

BLOCKS: Mapping[str, str] = {"transformer": "transformer_blocks", "text_encoder": "model.language_model.layers"}
"""The module of each part whose Linear layers are quantised."""

_SETTINGS = {"transformer": "model.quantization", "text_encoder": "model.text_encoder_quantization"}
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+)")
_ADA = (8, 9)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to quantise. `weight_bytes`: for each weight, its share of the scales included; GGUF: as its file has it.

    `package`: the distribution that does it, of the extra `quantization`.
    """

    package: str
    weight_bytes: float | None


# nf4: half a byte, and for each 64 weights a scale of one byte, for each 256 of which there is one of four bytes more.
_SCHEMES = {
    "int8": Scheme("torchao", 1.0),
    "int8-dynamic": Scheme("torchao", 1.0),
    "fp8": Scheme("torchao", 1.0),
    "fp8-dynamic": Scheme("torchao", 1.0),
    "nf4": Scheme("bitsandbytes", 1 / 2 + 1 / 64 + 4 / (64 * 256)),
}
_OF_FILE = Scheme("gguf", None)


def chosen(settings: ModelSettings) -> dict[str, str]:
    """Return the quantisation of each part that has one."""
    kinds = (settings.quantization, settings.text_encoder_quantization)
    return {part: kind for part, kind in zip(PARTS, kinds, strict=True) if kind != NO_QUANTIZATION}


def scheme(kind: str) -> Scheme:
    return _OF_FILE if kind.startswith(GGUF) else _SCHEMES[kind]


def check_quantization(settings: ModelSettings) -> None:
    """Raise ValueError for a quantisation whose package is not installed, or whose file is not there."""
    for part, kind in chosen(settings).items():
        package = scheme(kind).package
        if find_spec(package) is None:
            raise ValueError(
                f"{_SETTINGS[part]}: {kind} needs the package {package}, which is not installed; install the extra: "
                "uv pip install --constraint constraints.txt --editable '.[quantization]'"
            )
    if settings.quantization.startswith(GGUF):
        hub_file(settings.quantization)


def check_device(settings: ModelSettings, capability: tuple[int, int] | None, dtype: str) -> None:
    """Raise ValueError for a quantisation that the device cannot run.

    `capability`: that of the GPU as CUDA counts it, None for a CPU. `dtype`: that of the other weights.
    """
    for part, kind in chosen(settings).items():
        if kind != "fp8-dynamic":
            continue
        if capability is None or capability < _ADA:
            there = "a CPU" if capability is None else f"of capability {capability[0]}.{capability[1]}"
            raise ValueError(
                f"{_SETTINGS[part]}: fp8-dynamic multiplies in 8-bit floats, which takes a GPU of CUDA capability 8.9 "
                f"(Ada, Hopper) or newer, and this one is {there}; use fp8, int8 or int8-dynamic"
            )
        if dtype != "bfloat16":
            raise ValueError(
                f"{_SETTINGS[part]}: fp8-dynamic needs model.dtype: bfloat16, not {dtype} (torchao 0.18); use fp8"
            )


def hub_file(kind: str) -> tuple[str, str] | None:
    """Return the hub id and the file in it that a `gguf:` names; None if it is a file here. Raises ValueError."""
    path = kind.removeprefix(GGUF)
    if Path(path).is_file():
        return None
    named = _HUB_FILE.fullmatch(path)
    if named is None:
        raise ValueError(
            f"model.quantization: there is no file {path}, and OWNER/NAME/FILE on the hub has another form"
        )
    return named[1], named[2]
