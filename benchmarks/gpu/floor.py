"""The floor: the least cost of a forward of the transformer, counted in FLOP. Pure arithmetic.

Counted with a FLOP counter on diffusers' QwenImageTransformer2DModel (20.43 B parameters): 13.59e9 × S + 737280 × S²
for S tokens of picture and text together. Picture and text have weights of their own, so a token meets half of
them. The modulation layers, a third of all weights, get one vector a row and are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("L40S", 362.0),
    ("A100", 312.0),
    ("RTX 4090", 165.0),
)
"""Dense bf16 TFLOP/s by a part of the device's name, from NVIDIA's data sheets. The first match counts."""


@dataclass(frozen=True, slots=True)
class TransformerCost:
    """The FLOP of one forward, from the two sizes that determine them. The defaults are the published model's."""

    layers: int = 60
    width: int = 3072

    def forward_flop(self, image_tokens: int, text_tokens: int) -> float:
        """Return the FLOP of one row of the batch.

        A token meets 12 × width² weights in a layer (four projections of attention, two of the feed-forward, four times
        as wide), two FLOP each; attention multiplies S × S × width twice.
        """
        tokens = image_tokens + text_tokens
        return self.layers * (24.0 * self.width**2 * tokens + 4.0 * self.width * tokens**2)

    @property
    def modulation_flop(self) -> float:
        """The FLOP of one row's modulation: width × 6 width for the picture, and for the text. The floor has it not."""
        return self.layers * 24.0 * self.width**2

    def batch_flop(self, image_tokens: int, text_tokens: Iterable[int]) -> float:
        """Return the FLOP of a whole forward; `text_tokens`: of each row, without padding."""
        return sum(self.forward_flop(image_tokens, text) for text in text_tokens)


def floor_s(flop: float, peak_tflops: float) -> float:
    """Return the least seconds for so many FLOP."""
    return flop / (peak_tflops * 1e12)


def edit_floor_s(forward_flop: float, *, steps: int, guided: bool, peak_tflops: float) -> float:
    """Return the least seconds of one edit without encode and decode. Guidance runs the transformer twice a step."""
    return floor_s(forward_flop * steps * (2 if guided else 1), peak_tflops)


def known_peak_tflops(device_name: str) -> float | None:
    """Return the dense bf16 TFLOP/s of a device by its name, None if it is not in PEAK_TFLOPS."""
    return next((peak for part, peak in PEAK_TFLOPS if part.lower() in device_name.lower()), None)
