"""How large a model is before it is loaded: read from the headers of its safetensors files, here or on the hub."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    parse_local_safetensors_file_metadata,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils._safetensors import SafetensorsFileMetadata, TensorInfo

from serve_app.models.quantization import hub_file
from serve_app.settings import GGUF, ModelSettings

_SUFFIX = ".safetensors"
_TRANSFORMER = "transformer"
# The matrices of the blocks by their names in the files. The text encoder's are as transformers 4 or 5 has saved them.
_BLOCKS = {
    _TRANSFORMER: re.compile(r"transformer_blocks\."),
    "text_encoder": re.compile(r"(model\.)?(language_model\.)?layers\."),
}
_OF_WIDTH = "transformer_blocks.0.attn.to_q.weight"
# What modulates all blocks alike, of Qwen-Image-2.1 only.
_OF_PREFIXES = re.compile(r"modulation\.1\.weight")
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.attn\.to_q\.weight")
_HEAD = "lm_head."
# Each is a request of its own to the hub.
_HEADERS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PartSize:
    """The size of a part of a model in parameters, without the text encoder's head, which this server does not use.

    `of_blocks`: those that may be quantised. `largest`: those of its largest tensor. `download_bytes`: what is not on
    this machine yet. `file_bytes`: of the GGUF file from which its weights come instead.
    """

    parameters: int = 0
    of_blocks: int = 0
    largest: int = 0
    download_bytes: int = 0
    file_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """The size of a model. `width`: that of its transformer. `download_folder`: where a download would go.

    `prefix_blocks`: the blocks of a transformer that keeps keys and values of a prefix; 0: it keeps none.
    """

    parts: Mapping[str, PartSize]
    width: int = 0
    download_folder: Path | None = None
    prefix_blocks: int = 0

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def download_bytes(self) -> int:
        return sum(part.download_bytes for part in self.parts.values())


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


def weights_of(settings: ModelSettings, source: str) -> Weights:
    """Return the size of what the settings load from a directory or a hub id, with a `gguf:` in place of a part.

    Raises the errors of `weights` and `gguf_bytes`.
    """
    size = weights(source, settings.revision)
    if not settings.quantization.startswith(GGUF):
        return size
    file_bytes, missing_bytes = gguf_bytes(settings.quantization)
    part = replace(size.parts[_TRANSFORMER], file_bytes=file_bytes, download_bytes=missing_bytes)
    parts = {**size.parts, _TRANSFORMER: part}
    is_here = not any(each.download_bytes for each in parts.values())
    return replace(size, parts=parts, download_folder=None if is_here else Path(constants.HF_HUB_CACHE))


def in_folder(folder: Path) -> Weights:
    """Return the size of the files in a directory and those below it. Raises OSError."""
    try:
        headers = {
            str(path.relative_to(folder)): parse_local_safetensors_file_metadata(path)
            for path in folder.rglob(f"*{_SUFFIX}")
        }
    except SafetensorsParsingError as error:
        raise OSError(str(error)) from error
    return _measured(headers, {}, None)


def _on_hub(source: str, revision: str | None) -> Weights:
    hub = HfApi()
    files = hub.model_info(source, revision=revision, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(_SUFFIX)}
    cached = {name: try_to_load_from_cache(source, name, revision=revision) for name in sizes}
    missing = {name: size for name, size in sizes.items() if not isinstance(cached[name], str)}

    def header(name: str) -> SafetensorsFileMetadata:
        path = cached[name]
        if isinstance(path, str):
            return parse_local_safetensors_file_metadata(path)
        return hub.parse_safetensors_file_metadata(source, name, revision=revision)

    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        headers = dict(zip(sizes, pool.map(header, sizes), strict=True))
    return _measured(headers, missing, Path(constants.HF_HUB_CACHE) if missing else None)


def _measured(
    headers: Mapping[str, SafetensorsFileMetadata], missing: Mapping[str, int], download_folder: Path | None
) -> Weights:
    """Return the size of the files with these headers. `missing`: the bytes of those that are not here."""
    parts: dict[str, PartSize] = {}
    width = 0
    for name, header in headers.items():
        part, _, _ = name.rpartition("/")
        tensors = {key: tensor for key, tensor in header.tensors.items() if not key.startswith(_HEAD)}
        counts = {key: tensor.parameter_count for key, tensor in tensors.items()}
        before = parts.get(part, PartSize())
        parts[part] = PartSize(
            parameters=before.parameters + sum(counts.values()),
            of_blocks=before.of_blocks
            + sum(counts[key] for key, tensor in tensors.items() if _is_quantised(part, key, tensor)),
            largest=max(before.largest, *counts.values()),
            download_bytes=before.download_bytes + missing.get(name, 0),
        )
        width = max([width, *(tensors[key].shape[0] for key in tensors if key.endswith(_OF_WIDTH))])
    return Weights(parts, width, download_folder, _prefix_blocks(headers.values()))


def _prefix_blocks(headers: Iterable[SafetensorsFileMetadata]) -> int:
    names = [name for header in headers for name in header.tensors]
    blocks = {found[1] for found in map(_BLOCK.fullmatch, names) if found}
    return len(blocks) if any(map(_OF_PREFIXES.fullmatch, names)) else 0


def _is_quantised(part: str, name: str, tensor: TensorInfo) -> bool:
    pattern = _BLOCKS.get(part)
    return pattern is not None and len(tensor.shape) == 2 and pattern.match(name) is not None


def gguf_bytes(kind: str) -> tuple[int, int]:
    """Return the bytes of the file that a `gguf:` names, and how many of them are not on this machine. Raises OSError.

    Raises ValueError for a name that is no file here and has not the form of one on the hub.
    """
    on_hub = hub_file(kind)
    if on_hub is None:
        return Path(kind.removeprefix(GGUF)).stat().st_size, 0
    cached = try_to_load_from_cache(*on_hub)
    if isinstance(cached, str):
        return Path(cached).stat().st_size, 0
    try:
        size = get_hf_file_metadata(hf_hub_url(*on_hub)).size or 0
    except Exception as error:
        # Any: the exceptions of the hub's HTTP client come through (huggingface_hub 2.4).
        raise OSError(f"{kind} cannot be read from the hub: {error}") from error
    return size, size
