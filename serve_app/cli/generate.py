"""`image-edits generate`: pictures from a text alone, in one request."""

import json
from pathlib import Path

import click

from serve_app.cli.inputs import SUFFIXES, edit_tag, write_whole
from serve_app.cli.progress import complain, error_fields, message_of
from serve_app.client.blocking import ImageEdits
from serve_app.client.messages import GenerationOptions
from serve_app.errors import EditError

GENERATED, FAILED = 0, 1


def generate_pictures(prompt: str, options: GenerationOptions, *, out: Path, server: str, as_json: bool) -> int:
    """Make the pictures, write them into `out`, and return the exit status. Raises click.UsageError."""
    try:
        client = ImageEdits(server)
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    # What makes a picture, with its seed: files of one name are the same picture.
    making = {name: value for name, value in options.items() if name not in ("n", "seed")}
    tag, suffix = edit_tag({"prompt": prompt, **making}), SUFFIXES[options["output_format"]]
    written: list[tuple[Path, int]] = []
    failure: Exception | None = None
    try:
        with client:
            # Find out without a minute of retries: is there a server that accepts the key?
            client.models()
            for output in client.generate(prompt, **options):
                path = out / f"{tag}-{output.seed}{suffix}"
                write_whole(path, output.file)
                written.append((path, output.seed))
    except (EditError, OSError) as error:
        failure = error
        complain(message_of(error))
    if as_json:
        print(_line(prompt, written, failure))
    else:
        for path, seed in written:
            print(f"{path} (seed {seed})")
    return GENERATED if failure is None else FAILED


def _line(prompt: str, written: list[tuple[Path, int]], failure: Exception | None) -> str:
    line = {
        "prompt": prompt,
        "status": "generated" if failure is None else "failed",
        "outputs": [{"path": str(path), "seed": seed} for path, seed in written],
        "error": None if failure is None else error_fields(failure),
    }
    return json.dumps(line, ensure_ascii=False)
