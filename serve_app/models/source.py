"""Where the served model is, and whether this server runs it: read from its index alone, without torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from serve_app.settings import BUILTINS, License, ModelSettings

Family = Literal["edit", "edit-plus", "2.1"]
"""Checkpoints that one pipeline class of serve_app.models.families runs."""

SERVED_CLASSES: dict[str, Family] = {
    "QwenImageEditPipeline": "edit",
    # The same weights, for edits with a mask.
    "QwenImageEditInpaintPipeline": "edit",
    "QwenImageEditPlusPipeline": "edit-plus",
    "QwenImage21Pipeline": "2.1",
    "StepwiseQwenImageEditPipeline": "edit",
    "StepwiseQwenImageEditPlusPipeline": "edit-plus",
    "StepwiseQwenImage21Pipeline": "2.1",
}
"""The pipeline classes that an index may name. Those that begin with Stepwise are ours."""

RESTRICTED: dict[Family, License] = {"2.1": "qwen-research"}
"""Licences that do not allow commerce, of the published checkpoints of a family."""

_LICENSE_TITLES: dict[License, str] = {"qwen-research": "the Qwen Research License Agreement"}

_INDEX = "model_index.json"
# Files of these suffixes are pickles, which run code when they are read.
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
# Where the built-in models are, with their model cards. training/ trains them.
_MODELS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Source:
    """What diffusers loads: `location` is a directory or a hub id."""

    location: str
    family: Family


def check_source(settings: ModelSettings) -> Source:
    """Return where the model is and its family. Raises ValueError or OSError for a model not supported.

    This check reads only the model's index, before gigabytes are loaded. It asks the hub only for what is not in the
    hub's cache on this machine.
    """
    source = _source(settings)
    served = _read(_find_index(source, settings.revision), source).get("_class_name")
    family = SERVED_CLASSES.get(served) if isinstance(served, str) else None
    if family is None:
        classes = ", ".join(name for name in SERVED_CLASSES if not name.startswith("Stepwise"))
        raise ValueError(
            f"model.source: {source} is a {served}; this server runs {classes}, such as Qwen/Qwen-Image-Edit-2511"
        )
    _check_license(settings, family)
    return Source(source, family)


def license_of(settings: ModelSettings, family: Family) -> License | None:
    """Return the licence that restricts the use of a model, or None."""
    return None if settings.source in BUILTINS else RESTRICTED.get(family)


def _check_license(settings: ModelSettings, family: Family) -> None:
    needed = license_of(settings, family)
    if needed not in (None, settings.accept_license):
        raise ValueError(
            f"model.source: {settings.source} is published under {_LICENSE_TITLES[needed]}, for research and "
            "evaluation and not for commerce; read it beside the model, and if it allows your use set "
            f"model.accept_license: {needed}"
        )


def _source(settings: ModelSettings) -> str:
    if settings.source in BUILTINS:
        return str(_MODELS / settings.source.replace(":", "_").replace("-", "_"))
    if settings.source.startswith("builtin:"):
        raise ValueError(f"model.source: {settings.source} is unknown; the built-in models are {', '.join(BUILTINS)}")
    return settings.source


def _find_index(source: str, revision: str | None) -> Path:
    folder = Path(source)
    if folder.is_dir():
        index = folder / _INDEX
        if not index.is_file():
            raise ValueError(f"model.source: the directory {source} has no {_INDEX}, so it is no model of diffusers")
        if missing := _missing_parts(index, source):
            raise ValueError(f"model.source: the directory {source} lacks {', '.join(missing)}: its {_INDEX} names it")
        _reject_pickles(folder)
        return index
    try:
        cached = try_to_load_from_cache(source, _INDEX, revision=revision)
    except HFValidationError:
        raise ValueError(f"model.source: there is no directory {source}, and no hub id has that form") from None
    if isinstance(cached, str) and not _missing_parts(Path(cached), source):
        return Path(cached)
    with _explaining(source, revision):
        # Asked first, since the download would ask a hub that cannot be reached again and again, for half a minute.
        HfApi().model_info(source, revision=revision)
        return Path(hf_hub_download(source, _INDEX, revision=revision))


def _missing_parts(index: Path, source: str) -> list[str]:
    """Return the parts of a model that its index names and that are not beside the index."""
    parts = (name for name, kind in _read(index, source).items() if isinstance(kind, list) and any(kind))
    return [name for name in parts if not (index.parent / name).is_dir()]


def _reject_pickles(folder: Path) -> None:
    """Raise ValueError for a part whose weights are pickles only."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        pickles = sorted(path.name for path in part.iterdir() if path.suffix in _PICKLES)
        if pickles and not any(part.glob("*.safetensors")):
            raise ValueError(
                f"model.source: {part} has no weights as safetensors, only {pickles[0]}: a file that runs code when it "
                "is read, so this server does not; save the model with safe_serialization=True"
            )


def _read(index: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(index.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"model.source: the {_INDEX} of {source} is damaged: it holds no JSON object")
    return content


@contextmanager
def _explaining(source: str, revision: str | None) -> Iterator[None]:
    """Raise the errors of the hub as ValueError, or as OSError if it cannot be reached, with what is the matter."""
    try:
        yield
    except RevisionNotFoundError:
        raise ValueError(f"model.revision: the hub's model {source} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"model.source: {source} is neither a directory here nor a model that the hub shows to this machine; one "
            "that is private or gated needs HF_TOKEN in the environment"
        ) from None
    except EntryNotFoundError:
        raise ValueError(f"model.source: {source} on the hub has no {_INDEX}: it is no model of diffusers") from None
    except Exception as error:
        # Any: the exceptions of the hub's HTTP client come through (huggingface_hub 2.4).
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"model.source: {source} is no directory here and not whole in the hub's cache, and the hub cannot be "
            f"read: {reason}"
        ) from error
