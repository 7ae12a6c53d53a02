"""Quantised Linear layers in place of others: by torchao, by bitsandbytes, or read from a GGUF file.

A sample must not depend on its neighbours in a forward. So scales of activations are each token's own, and the layers
of the modulation, which see one vector for each row and not a matrix, keep their activations as they are.
"""

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import GGUFQuantizationConfig, QwenImageTransformer2DModel
from huggingface_hub import hf_hub_download
from torch import nn

from serve_app.models.quantization import BLOCKS, hub_file
from serve_app.settings import GGUF

# A kind that quantises activations, and what takes its place where there are few.
_WEIGHTS_ONLY = {"int8-dynamic": "int8", "fp8-dynamic": "fp8"}
_MODULATION = ("img_mod.", "txt_mod.")


def quantize(part: str, model: nn.Module, kind: str, device: torch.device) -> None:
    """Quantise the blocks of a part, in place and layer by layer: on `device`, where they stay.

    `kind`: as in the settings, but GGUF. Raises ValueError if a layer has stayed as it was.
    """
    blocks = model.get_submodule(BLOCKS[part])
    if kind == "nf4":
        _quantize_to_nf4(blocks, device)
    else:
        _quantize_by_torchao(blocks, kind, device)
    linears = {path: module for path, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    unchanged = [path for path, linear in linears.items() if type(linear.weight) is nn.Parameter]
    if unchanged or not linears:
        what = unchanged[0] if unchanged else "every layer"
        raise ValueError(f"{kind} has left {what} of the {part} as it was; use another kind, or none")


def _quantize_by_torchao(blocks: nn.Module, kind: str, device: torch.device) -> None:
    # torchao is an extra.
    from torchao.quantization import quantize_

    def is_modulation(path: str) -> bool:
        return any(name in path for name in _MODULATION)

    few = _WEIGHTS_ONLY.get(kind, kind)
    for of_modulation, chosen in ((False, kind), (True, few)):
        quantize_(
            blocks,
            _config(chosen),
            filter_fn=lambda module, path, wanted=of_modulation: (
                isinstance(module, nn.Linear) and is_modulation(path) is wanted
            ),
            device=device,
        )


def _config(kind: str) -> Any:
    from torchao import quantization

    # The default of fp8-dynamic has one scale for all tokens of a forward. Settings of the compiler stay the user's.
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "int8": (quantization.Int8WeightOnlyConfig, {}),
        "int8-dynamic": (quantization.Int8DynamicActivationInt8WeightConfig, {}),
        "fp8": (quantization.Float8WeightOnlyConfig, {}),
        "fp8-dynamic": (
            quantization.Float8DynamicActivationFloat8WeightConfig,
            {"granularity": quantization.PerRow()},
        ),
    }
    config, options = classes[kind]
    return config(**options, set_inductor_config=False)


def _quantize_to_nf4(blocks: nn.Module, device: torch.device) -> None:
    # bitsandbytes is an extra.
    from bitsandbytes.nn import Linear4bit, Params4bit

    # Names alone, so that each layer is freed when its successor is there.
    for path in [path for path, module in blocks.named_modules() if isinstance(module, nn.Linear)]:
        linear: Any = blocks.get_submodule(path)
        quantized = Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype, device="meta"
        )
        weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        # The move quantises.
        quantized.weight = weight.to(device)
        quantized.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.to(device), requires_grad=False)
        blocks.set_submodule(path, quantized)


def read_gguf(kind: str, folder: str, dtype: torch.dtype, device: torch.device) -> QwenImageTransformer2DModel:
    """Return the transformer with the weights of a GGUF file, and the configuration of the checkpoint in `folder`.

    Raises ValueError for a file that cannot be read, or is made for another model.
    """
    on_hub = hub_file(kind)
    path = kind.removeprefix(GGUF) if on_hub is None else hf_hub_download(*on_hub)
    _check_names(path, folder)
    return QwenImageTransformer2DModel.from_single_file(
        path,
        config=folder,
        # Without it, diffusers (0.42) asks the hub for the configuration of another model.
        subfolder="transformer",
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        device=device,
    )


def _check_names(path: str, folder: str) -> None:
    """Raise ValueError unless a file has the weights of this transformer: diffusers (0.42) leaves others empty."""
    # gguf is an extra.
    from gguf import GGUFReader

    try:
        names = {tensor.name for tensor in GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"model.quantization: {path} cannot be read as GGUF: {error}") from error
    with init_empty_weights():
        config = QwenImageTransformer2DModel.load_config(folder, subfolder="transformer")
        wanted = set(QwenImageTransformer2DModel.from_config(config).state_dict())
    # Beside its weights, a file may have marks of the program that made it.
    others = {name for name in names - wanted if name.startswith(BLOCKS["transformer"])}
    if odd := sorted(wanted - names) or sorted(others):
        what = "lacks" if odd[0] in wanted else "has"
        raise ValueError(
            f"model.quantization: {path} is no transformer of this checkpoint: it {what} {odd[0]}; is it made for "
            "another model?"
        )
