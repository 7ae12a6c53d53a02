"""The size of the published Qwen-Image-Edit, in parameters: as the headers of its files have it."""

from serve_app.models.footprint import PartSize, Weights

# Counted from its published configuration, which benchmarks/gpu/model.py has.
PARTS = {
    "transformer": PartSize(20_430_401_088, 20_384_317_440, 56_623_104),
    "text_encoder": PartSize(7_747_169_280, 6_525_288_448, 544_997_376),
    "vae": PartSize(126_892_531, 0, 1_327_104),
}


def published(**parts: PartSize) -> Weights:
    """Return its size, or that with other parts."""
    return Weights({**PARTS, **parts}, 3072)
