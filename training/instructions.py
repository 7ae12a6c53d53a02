"""The table of instructions that the model learns."""

from dataclasses import dataclass

import numpy as np

from training import measures, transforms
from training.measures import Measure
from training.pictures import Mask, Pixels, as_pixels
from training.transforms import SkyTransform
from training.wordings import WORDINGS


@dataclass(frozen=True)
class Instruction:
    """An instruction: its transform, and the measure that confirms it. Pictures are height × width × 3 of 0 to 255."""

    name: str
    transform: SkyTransform
    measure: Measure
    needs_sky: bool = False
    weight: float = 1.0
    """How often it is drawn for training; higher for instructions that are slow to learn."""

    @property
    def wordings(self) -> tuple[str, ...]:
        """The instruction in people's words."""
        return WORDINGS[self.name]

    def apply(self, pixels: Pixels, sky_mask: Mask | None, rng: np.random.Generator) -> Pixels:
        """Return the edited picture, uint8. Raises ValueError if the instruction needs a sky mask and gets none."""
        if self.needs_sky and sky_mask is None:
            raise ValueError(f"{self.name} needs a sky mask")
        return as_pixels(self.transform(pixels.astype(np.float32), sky_mask, rng))

    def confirm(self, source: Pixels, result: Pixels) -> bool:
        """Return whether `result` is `source` as the instruction changes it. Both have one shape."""
        return bool(self.measure(source.astype(np.float32), result.astype(np.float32)))


# For every text that is no instruction; training.data makes more such texts.
IDENTITY = Instruction("identity", transforms.plain(transforms.unchanged), measures.is_unchanged)

INSTRUCTIONS: tuple[Instruction, ...] = (
    Instruction("grayscale", transforms.plain(transforms.to_grayscale), measures.is_grayscale),
    Instruction("sepia", transforms.plain(transforms.to_sepia), measures.is_sepia),
    Instruction("invert", transforms.plain(transforms.to_negative), measures.is_negative),
    Instruction("brighter", transforms.plain(transforms.to_brighter), measures.is_brighter),
    Instruction("darker", transforms.plain(transforms.to_darker), measures.is_darker),
    Instruction("vivid", transforms.plain(transforms.to_vivid), measures.is_vivid),
    Instruction("muted", transforms.plain(transforms.to_muted), measures.is_muted),
    Instruction("warmer", transforms.plain(transforms.to_warmer), measures.is_warmer),
    Instruction("cooler", transforms.plain(transforms.to_cooler), measures.is_cooler),
    Instruction("blur", transforms.plain(transforms.to_blurred), measures.is_blurred),
    Instruction("sharpen", transforms.plain(transforms.to_sharp), measures.is_sharp),
    Instruction("pixelate", transforms.plain(transforms.to_mosaic), measures.is_mosaic, weight=2),
    Instruction("sketch", transforms.plain(transforms.to_sketch), measures.is_sketch, weight=3),
    Instruction("artistic", transforms.plain(transforms.to_painting), measures.is_painting, weight=3),
    Instruction("red", transforms.plain(transforms.tint((1.3, 0.28, 0.25))), measures.is_tinted(0)),
    Instruction("green", transforms.plain(transforms.tint((0.3, 1.15, 0.3))), measures.is_tinted(1)),
    Instruction("blue", transforms.plain(transforms.tint((0.28, 0.42, 1.35))), measures.is_tinted(2)),
    Instruction("blue-sky", transforms.repaint_sky("blue"), measures.sky_is("blue"), needs_sky=True, weight=1.5),
    Instruction("orange-sky", transforms.repaint_sky("orange"), measures.sky_is("orange"), needs_sky=True, weight=1.5),
    Instruction("night-sky", transforms.repaint_sky("night"), measures.sky_is("night"), needs_sky=True, weight=1.5),
    Instruction("mirror", transforms.plain(transforms.to_mirrored), measures.is_mirrored, weight=5),
    Instruction("vignette", transforms.plain(transforms.to_vignetted), measures.is_vignetted),
    Instruction("bright-vivid", transforms.plain(transforms.to_bright_vivid), measures.is_bright_vivid),
    IDENTITY,
)
