"""Edit every picture of a folder, a thousand or a million, through Ray Data.

Run `python examples/edit_folder.py photos/ edited/ "make the sky blue"` while the editor runs on the cluster of
`RAY_ADDRESS`: the pictures go through the editor's handle, beside its other callers. With `--engines 4` no editor is
needed: four workers load the model, each on a GPU of its own if the cluster has GPUs, and end with the run.
It needs the package's extra `data`: pip install '.[data]'.

The run may be stopped at any time; the same command continues with the pictures that are not written yet. On several
nodes both folders must be shared. A picture that fails is reported, and the run ends with exit status 1; the next run
tries that picture again. The others are not affected.

Each worker keeps `--batch-size` edits in flight, so the engine fills its batches from `--workers` × `--batch-size`
pictures. Of more than `engine.max_waiting` pictures, the engine rejects some, and the worker sends them again.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import ray
from ray import serve

from serve_app import EditRequest
from serve_app.errors import EditError, Overloaded
from serve_app.settings import BUILTIN_TINY, AppSettings, ModelSettings

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}


# Starts an edit, and returns an object with `result()`.
Submit = Callable[[EditRequest], Any]


def served() -> Submit:
    """Return a function that submits to the editor on this cluster."""
    edit: Submit = serve.get_deployment_handle("ImageEditor", app_name="image-edits").edit.remote
    return edit


def own_engine(settings: AppSettings) -> Submit:
    """Load the model in this worker; return a function that submits to its engine."""
    from serve_app.models import runtime

    engine = runtime.start(settings).engine

    def submit(request: EditRequest) -> Any:
        (future,) = engine.submit([request])
        if isinstance(future, EditError):
            raise future
        return future

    return submit


class FolderEditor:
    """A worker of Ray Data, which edits a batch of pictures at once and returns their error messages."""

    def __init__(self, source: Path, target: Path, prompt: str, settings: AppSettings | None) -> None:
        self._source, self._target, self._prompt = source, target, prompt
        self._submit = served() if settings is None else own_engine(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        calls = [self._start(name) for name in batch["name"]]
        errors = [self._finish(name, call) for name, call in zip(batch["name"], calls, strict=True)]
        return {"name": batch["name"], "error": errors}

    def _start(self, name: str) -> Any:
        """Return the running call, or the error of the picture."""
        try:
            with PIL.Image.open(self._source / name) as picture:
                return self._submit(EditRequest(images=[picture], prompt=self._prompt))
        except Exception as error:
            return error

    def _finish(self, name: str, call: Any) -> str:
        """Write the result. Return the error message, empty after a success."""
        while True:
            try:
                if isinstance(call, Exception):
                    raise call
                write(call.result().images[0][0], edited(self._target, name))
                return ""
            except Overloaded as error:
                # The editor has other callers too: retry after the time that it names.
                time.sleep(error.retry_after_s or 1)
                call = self._start(name)
            except EditError as error:
                return error.message
            # No error of one picture may end the run of the others.
            except Exception as error:
                return f"{type(error).__name__}: {error}".splitlines()[0]


def edited(target: Path, name: str) -> Path:
    """Return the path of a picture's edit, with the whole name, since photo.jpg and photo.png may both exist."""
    return target / f"{name}.edited.png"


def write(picture: PIL.Image.Image, path: Path) -> None:
    """Write the whole file or nothing, so that a stopped run leaves no partial file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(partial, "PNG")
    partial.replace(path)


def names_in(source: Path) -> list[str]:
    return sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)


def edit_all(names: list[str], arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield name and error of each picture as soon as it is done."""
    batches = math.ceil(len(names) / arguments.batch_size)
    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=batches)
    settings = AppSettings(model=ModelSettings(source=arguments.model)) if arguments.engines else None
    outcomes = rows.map_batches(
        FolderEditor,
        # Workers have a working directory of their own.
        fn_constructor_args=(arguments.source.resolve(), arguments.target.resolve(), arguments.prompt, settings),
        batch_size=arguments.batch_size,
        compute=ray.data.ActorPoolStrategy(size=min(arguments.engines or arguments.workers, batches)),
        **_resources(own_engines=bool(arguments.engines)),
    )
    for row in outcomes.iter_rows():
        yield row["name"], row["error"]


def _resources(own_engines: bool) -> dict[str, float]:
    """Return the resources of one worker. A worker that calls the editor only decodes, writes and waits."""
    if not own_engines:
        return {"num_cpus": 0.25}
    return {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}


def main() -> int:
    arguments = _parse()
    names = names_in(arguments.source)
    todo = [name for name in names if not edited(arguments.target, name).exists()]
    print(f"{len(names)} pictures, {len(names) - len(todo)} already edited")
    failed = 0
    for count, (name, error) in enumerate(edit_all(todo, arguments) if todo else (), 1):
        failed += bool(error)
        print(f"{count}/{len(todo)} {name}{': ' + error if error else ''}", flush=True)
    print(f"{len(todo) - failed} edited, {failed} failed")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with pictures, subfolders included")
    parser.add_argument("target", type=Path, help="folder for the edits")
    parser.add_argument("prompt", help="the instruction for all pictures")
    parser.add_argument("--batch-size", type=int, default=16, help="edits in flight for each worker (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers that call the editor (%(default)s)")
    parser.add_argument(
        "--engines", type=int, default=0, help="workers with a model of their own, instead of --workers"
    )
    parser.add_argument("--model", default=BUILTIN_TINY, help="model.source for --engines (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    ray.init(address="auto")
    sys.exit(main())
