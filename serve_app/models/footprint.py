"""How large a model is before it is loaded: read from the headers of its safetensors files, here or on the hub."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    parse_local_safetensors_file_metadata,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import SafetensorsParsingError

_SUFFIX = ".safetensors"
# Each is a request of its own to the hub.
_HEADERS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """The size of a model. `download_bytes`: what is not on this machine yet, and the folder where it would go."""

    parameters: int
    download_bytes: int = 0
    download_folder: Path | None = None


def weights(source: str, revision: str | None) -> Weights:
    """Return the size of a directory or a hub id; of what is cached, if the hub cannot be read.

    Raises OSError, with the reason, if there is nothing cached either, or a local file is no safetensors file.
    """
    if Path(source).is_dir():
        return in_folder(Path(source))
    try:
        return _on_hub(source, revision)
    except Exception as error:
        # Any: the exceptions of the hub's HTTP client come through (huggingface_hub 2.4).
        try:
            cached = snapshot_download(source, revision=revision, local_files_only=True)
        except OSError:
            raise OSError(f"{source} cannot be read from the hub: {error}") from error
        return in_folder(Path(cached))


def in_folder(folder: Path) -> Weights:
    """Return the size of the files in a directory and those below it. Raises OSError."""
    try:
        return Weights(sum(_parameters(path) for path in folder.rglob(f"*{_SUFFIX}")))
    except SafetensorsParsingError as error:
        raise OSError(str(error)) from error


def _on_hub(source: str, revision: str | None) -> Weights:
    hub = HfApi()
    files = hub.model_info(source, revision=revision, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(_SUFFIX)}
    cached = {name: try_to_load_from_cache(source, name, revision=revision) for name in sizes}
    missing = [name for name in sizes if not isinstance(cached[name], str)]

    def parameters(name: str) -> int:
        path = cached[name]
        if isinstance(path, str):
            return _parameters(Path(path))
        return sum(hub.parse_safetensors_file_metadata(source, name, revision=revision).parameter_count.values())

    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        count = sum(pool.map(parameters, sizes))
    return Weights(count, sum(sizes[name] for name in missing), Path(constants.HF_HUB_CACHE) if missing else None)


def _parameters(path: Path) -> int:
    return sum(parse_local_safetensors_file_metadata(path).parameter_count.values())
