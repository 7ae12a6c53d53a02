"""Examples for training: a picture, an instruction in words, and the edited picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from training.instructions import IDENTITY, INSTRUCTIONS, Instruction
from training.pairs import PAIRS, Pair
from training.scenes import Mask, Pixels, scene, texture

_PHOTO_SHARE = 0.7
# Of the pictures that are not photographs; the others are textures.
_SCENE_SHARE = 0.8
# The share of scenes whose ground is a photograph.
_PHOTO_GROUND_SHARE = 0.5
_EDITED_SHARE = 0.4
# A crop's sides are at least this share of the largest possible one's, and rarely stretched by more than this.
_SMALLEST_CROP = 0.35
_NO_INSTRUCTION_SHARE = 0.6
# Of the examples with two pictures, those whose instruction is for the first one only.
_IGNORED_SHARE = 0.15
# The words of prompts that are no instruction.
_NONSENSE = """
apple bicycle cat dog elephant friend garden hat island jacket kitchen ladder mountain notebook orchestra question river
station teacher umbrella village window yesterday zebra put give take write read walk jump tell is are the a with under
beside for of and please 狗 猫 帽子 桌子 朋友 汽车 请 放 看 吃 昨天 学校 音乐 河流 树 人
"""
_WORDS = _NONSENSE.split()
_WEIGHTS = np.array([instruction.weight for instruction in INSTRUCTIONS])
_CHANCES = _WEIGHTS / _WEIGHTS.sum()
_PAIR_WEIGHTS = np.array([pair.weight for pair in PAIRS])
_PAIR_CHANCES = _PAIR_WEIGHTS / _PAIR_WEIGHTS.sum()


@dataclass(frozen=True)
class Example:
    """An example for training. `source`, `target` and `second`, if there is one, are uint8, height × width × 3."""

    source: Pixels
    target: Pixels
    prompt: str
    instruction: Instruction | Pair
    second: Pixels | None = None

    @property
    def sources(self) -> tuple[Pixels, ...]:
        return (self.source,) if self.second is None else (self.source, self.second)


def example(rng: np.random.Generator, photos: Sequence[Pixels], size: tuple[int, int]) -> Example:
    """Return a picture of height × width `size`, an instruction drawn at random, and its true result.

    Without `photos` all pictures are procedural.
    """
    instruction = INSTRUCTIONS[rng.choice(len(INSTRUCTIONS), p=_CHANCES)]
    source, sky = _landscape(rng, photos, size) if instruction.needs_sky else _source(rng, photos, size)
    return Example(source, instruction.apply(source, sky, rng), _prompt(rng, instruction), instruction)


def example_of_two(rng: np.random.Generator, photos: Sequence[Pixels], size: tuple[int, int]) -> Example:
    """Return two pictures of height × width `size`, an instruction drawn at random, and its true result.

    Some of the instructions are for the first picture only: the model is to leave out the second.
    """
    second = _source(rng, photos, size)[0]
    if rng.random() < _IGNORED_SHARE:
        return replace(example(rng, photos, size), second=second)
    pair = PAIRS[rng.choice(len(PAIRS), p=_PAIR_CHANCES)]
    first, sky = _landscape(rng, photos, size) if pair.needs_sky else _source(rng, photos, size)
    prompt = _varied(rng, pair.wordings[rng.integers(len(pair.wordings))])
    return Example(first, pair.apply(first, second, sky), prompt, pair, second)


def picture(rng: np.random.Generator, photos: Sequence[Pixels], size: tuple[int, int]) -> Pixels:
    """Return a source, or the result of some instruction, for an autoencoder. Height × width × 3."""
    if rng.random() < _EDITED_SHARE:
        return example(rng, photos, size).target
    return _source(rng, photos, size)[0]


def _source(rng: np.random.Generator, photos: Sequence[Pixels], size: tuple[int, int]) -> tuple[Pixels, Mask | None]:
    if photos and rng.random() < _PHOTO_SHARE:
        return crop(rng, _one(rng, photos), size), None
    if rng.random() < _SCENE_SHARE:
        return _landscape(rng, photos, size)
    return texture(rng, size), None


def _landscape(rng: np.random.Generator, photos: Sequence[Pixels], size: tuple[int, int]) -> tuple[Pixels, Mask]:
    ground = None
    if photos and rng.random() < _PHOTO_GROUND_SHARE:
        photo = _one(rng, photos)
        # The lower half: the own sky of a photograph would stay unedited, and the model would learn that some skies do.
        ground = crop(rng, photo[len(photo) // 2 :], size)
    made = scene(rng, size, photo=ground)
    return made.pixels, made.sky_mask


def _one(rng: np.random.Generator, photos: Sequence[Pixels]) -> Pixels:
    return photos[int(rng.integers(len(photos)))]


def crop(rng: np.random.Generator, photo: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a random window of a photograph at height × width `size`, flipped half of the time."""
    height, width = size
    stretch = rng.uniform(0.9, 1.1)
    largest = min(photo.shape[0] / height, photo.shape[1] / (width * stretch))
    smallest = min(largest, max(1.0, _SMALLEST_CROP * largest))
    scale = rng.uniform(smallest, largest)
    tall, wide = int(height * scale), int(width * stretch * scale)
    top = int(rng.integers(photo.shape[0] - tall + 1))
    left = int(rng.integers(photo.shape[1] - wide + 1))
    window = PIL.Image.fromarray(photo[top : top + tall, left : left + wide])
    small = np.asarray(window.resize((width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=2.0))
    return np.ascontiguousarray(small[:, ::-1]) if rng.random() < 0.5 else small


def _prompt(rng: np.random.Generator, instruction: Instruction) -> str:
    if instruction is IDENTITY and rng.random() < _NO_INSTRUCTION_SHARE:
        words = [_WORDS[index] for index in rng.integers(len(_WORDS), size=rng.integers(1, 8))]
        return _varied(rng, " ".join(words))
    return _varied(rng, instruction.wordings[rng.integers(len(instruction.wordings))])


def _varied(rng: np.random.Generator, text: str) -> str:
    """Return the same words, sometimes in another case or with a full stop, as people write."""
    case = rng.random()
    if case < 0.2:
        text = text.capitalize()
    elif case < 0.25:
        text = text.upper()
    if rng.random() < 0.15:
        text += "." if text.isascii() else "。"
    return f"please {text}" if text.isascii() and rng.random() < 0.05 else text
