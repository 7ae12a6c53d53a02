"""`image-edits check`: whether this installation can serve; with --server, whether a server answers as it should."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement

from serve_app.api.keys import load_keys
from serve_app.cli.machine import Disk, Gpu, available_memory
from serve_app.client.blocking import ImageEdits
from serve_app.client.connection import KEY_ENV, Unreachable
from serve_app.errors import EditError, Forbidden, Unauthorized
from serve_app.images.signing import check_signing
from serve_app.settings import BUILTIN_TINY, BUILTINS, AppSettings, AuthSettings, ModelSettings, ProvenanceSettings

if TYPE_CHECKING:
    # Loads the hub's client.
    from serve_app.models.footprint import Weights

DISTRIBUTION = "serve-image-edits"
_PATIENCE_S = 15.0
# Above this share, Ray stores no more objects on the disk (Ray 2.60).
_RAY_DISK_FULL = 0.95
_RAY_FOLDER = Path("/tmp")
_FIND_GPU = "if there is one, `nvidia-smi` shows it and its driver"
_INSTALL = "install again: `make install`, or uv pip with constraints.txt"


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of one check, with advice on what to do about it."""

    level: Literal["ok", "warning", "problem"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:9}{self.what}" + (f"\n{'':9}→ {self.advice}" if self.advice else "")


def report(findings: Iterable[Finding]) -> int:
    """Print each finding as it is made, and return the exit status."""
    levels = set()
    for finding in findings:
        print(finding, flush=True)
        levels.add(finding.level)
    return 1 if "problem" in levels else 0


# --- a server -----------------------------------------------------------------------------------------------------


def check_server(url: str) -> Iterator[Finding]:
    """Yield whether the server is alive and ready, whether it accepts the key, and what it serves."""
    try:
        with ImageEdits(url, timeout_s=_PATIENCE_S) as edits:
            yield from _health(edits)
            yield from _models(edits)
    except ValueError as error:
        yield Finding("problem", str(error))
    except Unreachable as error:
        yield Finding("problem", error.message, "start it with `image-edits serve`, or check the address")
    except Forbidden as error:
        yield Finding("problem", error.message)
    except EditError as error:
        yield Finding("problem", f"{url} answers, but not as this server does: {error.message}", "check the address")


def _health(edits: ImageEdits) -> Iterator[Finding]:
    if edits.ready():
        yield Finding("ok", f"{edits.server} is alive and ready")
    else:
        advice = "loading a model takes minutes; if it takes longer, read the log of the replica"
        yield Finding("problem", f"{edits.server} is alive, but no replica has a warm model", advice)


def _models(edits: ImageEdits) -> Iterator[Finding]:
    try:
        with ImageEdits(edits.server, key="", timeout_s=_PATIENCE_S) as stranger:
            names = stranger.models()
        yield Finding("ok", "it asks for no key")
    except Unauthorized:
        try:
            names = edits.models()
        except Unauthorized:
            is_set = bool(os.environ.get(KEY_ENV))
            what = f"it refuses the key in {KEY_ENV}" if is_set else f"it asks for a key, and {KEY_ENV} is not set"
            yield Finding("problem", what, f"put a key of the server into the environment as {KEY_ENV}")
            return
        yield Finding("ok", f"it takes the key in {KEY_ENV}")
    yield Finding("ok", f"names of its model: {', '.join(names)}")


# --- an installation ----------------------------------------------------------------------------------------------


def check_installation(read: Callable[[], AppSettings]) -> Iterator[Finding]:
    """Yield what was found of all that the server needs, from versions to memory. `read` raises ValueError."""
    yield Finding("ok", f"Python {platform.python_version()}")
    yield from packages(DISTRIBUTION)
    try:
        settings = read()
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    yield from keys(settings.auth)
    yield from signing(settings.provenance)
    yield from _ray_disk()
    yield from _model(settings)


def packages(distribution: str) -> Iterator[Finding]:
    """Compare the installed versions with the distribution's requirements, extras left out."""
    fitting = []
    for text in requires(distribution) or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            yield Finding("problem", f"{wanted.name} is not installed", _INSTALL)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            fitting.append(f"{wanted.name} {found}")
        else:
            yield Finding("problem", f"{wanted.name} is {found}, and {wanted.specifier} is needed", _INSTALL)
    yield Finding("ok", "packages that fit: " + ", ".join(fitting))


def keys(auth: AuthSettings) -> Iterator[Finding]:
    try:
        count = len(load_keys(auth))
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    if count:
        yield Finding("ok", f"API keys: {count}")
    else:
        advice = f"before others can reach the port, set auth.keys_file, or {auth.keys_env} in the environment"
        yield Finding("warning", "no API keys are set: anyone who reaches the port may edit", advice)


def signing(provenance: ProvenanceSettings) -> Iterator[Finding]:
    try:
        check_signing(provenance)
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    if provenance.c2pa_certificate is not None:
        yield Finding("ok", f"outputs are signed with {provenance.c2pa_certificate}")


def _ray_disk() -> Iterator[Finding]:
    disk = Disk.of(_RAY_FOLDER)
    what = f"disk of {_RAY_FOLDER}, where Ray keeps its files: {_gb(disk.free_bytes)} free"
    if disk.used_share > _RAY_DISK_FULL:
        yield Finding("problem", what, f"Ray stores no more objects beyond {_RAY_DISK_FULL:.0%}: make room")
    else:
        yield Finding("ok", what)


def _model(settings: AppSettings) -> Iterator[Finding]:
    model = settings.model
    try:
        import serve_app.models.loading  # noqa: F401 - loads both
        from serve_app.models.footprint import weights_of
        from serve_app.models.source import check_source
    except Exception as error:
        # Any: a torch and a torchvision from different indexes raise RuntimeError.
        yield Finding("problem", f"PyTorch and diffusers cannot be loaded: {_first_line(error)}", _INSTALL)
        return
    gpu, reason = Gpu.found()
    device = gpu if model.device != "cpu" else None
    yield from _device(model, device, reason)
    yield from quantization(model, device)
    try:
        size = weights_of(model, check_source(model).location)
    except (ValueError, OSError) as error:
        advice = f"a directory with model_index.json, a hub id that can be reached from here, or {BUILTIN_TINY}"
        yield Finding("problem", f"model {model.source}: {_first_line(error)}", advice)
        return
    yield from room(settings, size, device, available_memory())


def quantization(settings: ModelSettings, gpu: Gpu | None) -> Iterator[Finding]:
    """Yield whether packages and device can do the quantisation of the settings; nothing if there is none."""
    from serve_app.models.quantization import check_device, check_quantization, chosen

    try:
        check_quantization(settings)
        # Of a GPU that is not here, nothing is known.
        if gpu is not None or settings.device != "cuda":
            check_device(settings, gpu.capability if gpu else None, _dtype(settings, gpu))
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    if kinds := chosen(settings):
        words = ", ".join(f"{part} as {kind}" for part, kind in kinds.items())
        yield Finding("ok", f"quantised weights: {words}")


def _dtype(settings: ModelSettings, gpu: Gpu | None) -> str:
    """Return the type of what is not quantised."""
    on_gpu = gpu is not None or settings.device == "cuda"
    return settings.dtype if settings.dtype != "auto" else "bfloat16" if on_gpu else "float32"


def _device(settings: ModelSettings, gpu: Gpu | None, reason: str) -> Iterator[Finding]:
    if gpu is not None:
        yield Finding("ok", f"GPU {gpu.name}, {_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} free")
        if settings.dtype in ("auto", "bfloat16") and not gpu.has_bfloat16:
            yield Finding("problem", f"{gpu.name} has no bfloat16", "set model.dtype: float16")
    elif settings.device == "cuda":
        yield Finding("problem", f"model.device is cuda, but PyTorch sees no GPU. {reason}".strip(), _FIND_GPU)
    elif settings.source in BUILTINS:
        yield Finding("ok", f"no GPU; {settings.source} needs none. {reason}".strip())
    else:
        yield Finding("warning", f"no GPU: an edit may take hours. {reason}".strip(), _FIND_GPU)


def room(settings: AppSettings, size: "Weights", gpu: Gpu | None, memory_bytes: int) -> Iterator[Finding]:
    """Compare what the model takes with the free bytes of the disk, if it is downloaded, and of GPU and memory."""
    from serve_app.models.memory import RESERVE_BYTES, estimate

    model = settings.model
    if size.download_folder is not None:
        free_bytes = Disk.of(size.download_folder).free_bytes
        advice = "make room, or set HF_HOME to another disk"
        yield _fits(f"download into {size.download_folder}", size.download_bytes, free_bytes, advice)
    memory = estimate(settings, size, 4 if _dtype(model, gpu) == "float32" else 2)
    prefixes = f"{_gb(memory.prefix_bytes)} for prefixes, " if memory.prefix_bytes else ""
    what = (
        f"GPU memory, of which {_gb(memory.weights_bytes)} weights, {prefixes}{_gb(memory.work_bytes)} for a guided "
        f"edit and {_gb(RESERVE_BYTES)} for CUDA itself (computed)"
    )
    if gpu is not None:
        ways = "model.quantization or model.offload" + (", or a smaller engine.prefix_cache_gb" if prefixes else "")
        advice = f"set {ways}, free the GPU, or take a larger one"
        yield _fits(what, memory.gpu_bytes, gpu.free_bytes, advice)
    elif model.device == "cuda":
        yield Finding("warning", f"{what}: {_gb(memory.gpu_bytes)}", "take a GPU that has as much")
    if model.offload != "none" or (gpu is None and model.device != "cuda"):
        yield _fits("weights in memory", memory.stored_bytes, memory_bytes, "take a machine with more memory")


def _fits(what: str, needed_bytes: int, free_bytes: int, advice: str) -> Finding:
    words = f"{what}: {_gb(needed_bytes)}, and {_gb(free_bytes)} are free"
    return Finding("ok", words) if needed_bytes < free_bytes else Finding("problem", words, advice)


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
