"""`python -m training.quantization`: what quantised weights cost a model: PSNR to its own edits, and edits confirmed.

Needs the extra `quantization`: `make quantization`, and PYTHONPATH=.venv/quantization.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from serve_app.models import loading
from serve_app.models.quantization import BLOCKS
from serve_app.settings import BUILTIN_TINY, ModelSettings
from training.instructions import INSTRUCTIONS, Instruction
from training.steps import confirmed_share, make, mean_db, taught_edits

PICTURES = 4
# GGUF's formats that its package can write; those with a K have to come from llama.cpp.
FORMATS = ("Q8_0", "Q4_0")
# The transformer's quantisation and the text encoder's; a name of FORMATS stands for a file.
KINDS = (
    ("int8", "none"),
    ("int8", "int8"),
    ("int8-dynamic", "int8-dynamic"),
    ("fp8", "fp8"),
    ("nf4", "nf4"),
    ("nf4", "int8"),
    ("int8", "nf4"),
    *((name, "none") for name in FORMATS),
)


@dataclass(frozen=True)
class Row:
    """The edits of a model with quantised weights. `own_db`: mean PSNR to the same edits without."""

    transformer: str
    text_encoder: str
    own_db: float
    confirmed: float


def compare(
    source: str,
    kinds: Sequence[tuple[str, str]],
    pictures: int,
    instructions: Sequence[Instruction] = INSTRUCTIONS,
    steps: int | None = None,
) -> list[Row]:
    """Return a row for the model as it is, and then one for each pair of quantisations."""
    model = loading.load(ModelSettings(source=source))
    count = steps or model.default_steps
    edits = taught_edits(model, pictures, instructions)
    full = make(model, edits, count)
    rows = [Row("none", "none", mean_db(full, full), confirmed_share(edits, full))]
    with tempfile.TemporaryDirectory() as folder:
        for transformer, text_encoder in kinds:
            kind = transformer
            if transformer in FORMATS:
                kind = f"gguf:{write_gguf(model.pipeline.transformer, Path(folder) / 'weights.gguf', transformer)}"
            quantized = loading.load(
                ModelSettings(source=source, quantization=kind, text_encoder_quantization=text_encoder)
            )
            results = make(quantized, edits, count)
            rows.append(Row(transformer, text_encoder, mean_db(results, full), confirmed_share(edits, results)))
    return rows


def write_gguf(transformer: torch.nn.Module, path: Path, name: str) -> Path:
    """Write a transformer's weights as a GGUF file: the blocks' matrices in one of its formats, all others in float32.

    The matrices' rows must be multiples of 32.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(str(path), "qwen_image")
    for weight_name, weight in transformer.state_dict().items():
        values = weight.float().numpy()
        if weight_name.startswith(BLOCKS["transformer"]) and values.ndim == 2:
            writer.add_tensor(weight_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(weight_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def table(rows: Sequence[Row]) -> str:
    lines = ["| transformer | text encoder | PSNR to the edit without, dB | edits confirmed |", "|---|---|---|---|"]
    plain, *others = rows
    lines.append(f"| none | none | | {plain.confirmed:.0%} |")
    return "\n".join(
        [
            *lines,
            *(
                f"| {_title(row.transformer)} | {row.text_encoder} | {row.own_db:.1f} | {row.confirmed:.0%} |"
                for row in others
            ),
        ]
    )


def _title(kind: str) -> str:
    return f"GGUF {kind}" if kind in FORMATS else kind


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.quantization", description=__doc__)
    parser.add_argument("--model", default=BUILTIN_TINY, help="as `model.source` (%(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="for each instruction (%(default)s)")
    arguments = parser.parse_args()
    print(table(compare(arguments.model, KINDS, arguments.pictures)))


if __name__ == "__main__":
    main()
