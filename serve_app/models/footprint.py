"""How large a model is, before it is loaded: from the headers of its safetensors files, or from the hub."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".safetensors"
# How models are published.
_BYTES_PER_PUBLISHED_PARAMETER = 2


@dataclass(frozen=True, slots=True)
class Weights:
    """`download_bytes`: what is not on this machine yet, and the folder where it would go."""

    parameters: int
    download_bytes: int = 0
    download_folder: Path | None = None


def weights(source: str, revision: str | None) -> Weights:
    """Those of a directory or a hub id. Raises OSError where neither the hub nor its cache has them."""
    if Path(source).is_dir():
        return in_folder(Path(source))
    from huggingface_hub import snapshot_download

    try:
        return _on_hub(source, revision)
    except Exception:
        # Whatever the hub's client and its transport raise without a network: what is cached may do.
        return in_folder(Path(snapshot_download(source, revision=revision, local_files_only=True)))


def in_folder(folder: Path) -> Weights:
    return Weights(sum(_parameters(path) for path in folder.rglob(f"*{_SUFFIX}")))


def _parameters(path: Path) -> int:
    """The header is JSON after its length in 8 bytes: name, dtype and shape of each tensor."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _on_hub(source: str, revision: str | None) -> Weights:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    files = HfApi().model_info(source, revision=revision, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(_SUFFIX)}
    missing = {
        name: size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(source, name, revision=revision), str)
    }
    parameters = sum(sizes.values()) // _BYTES_PER_PUBLISHED_PARAMETER
    return Weights(parameters, sum(missing.values()), Path(HF_HUB_CACHE) if missing else None)
