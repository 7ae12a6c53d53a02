"""The command `image-edits`: its commands and their options. The module of a command's name has what it does."""

import io
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast, get_args

import click

from serve_app.api.keys import NAME, NAME_RULE, load_keys
from serve_app.cli.ray_ports import check_token_mode, close_ports
from serve_app.client.connection import DEFAULT_SERVER, KEY_ENV, SERVER_ENV
from serve_app.client.messages import EditOptions, GenerationOptions
from serve_app.forms.fields import MAX_COMPRESSION
from serve_app.images.encoding import OutputFormat
from serve_app.images.geometry import Fit
from serve_app.request import MAX_SEED, MAX_VARIANTS, Background
from serve_app.settings import BUILTIN_TINY, MAX_GUIDANCE, MAX_STEPS, AppSettings, License, ModelSettings, read_settings

INTERRUPTED = 130
_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}
_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)


class _Commands(click.Group):
    """A group with the exit status of a shell for Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


# Each command imports what it runs when it runs: an edit and every --help do without Ray and torch.
@click.group(cls=_Commands, context_settings=_CONTEXT, epilog="image-edits COMMAND --help shows a command's options.")
@click.version_option(package_name="serve-image-edits", message="%(version)s")
def main() -> None:
    """Edit pictures by instruction."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold bytes that are not text in any encoding. stderr escapes them by default.
        sys.stdout.reconfigure(errors="backslashreplace")


_KEY = f"The API key is read from {KEY_ENV} in the environment, never from the command line."
_MAKING = (
    click.option(
        "--server", metavar="URL", envvar=SERVER_ENV, show_envvar=True, default=DEFAULT_SERVER, help="Server."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print results as lines of JSON."),
    click.option("-n", type=click.IntRange(1, MAX_VARIANTS), default=1, help="Variants of each picture."),
    click.option("--steps", type=click.IntRange(1, MAX_STEPS), help="Denoising steps."),
    click.option(
        "--guidance", type=click.FloatRange(1, MAX_GUIDANCE), help="Classifier-free guidance; 1 turns it off."
    ),
    click.option("--preset", help="Preset of the server: steps, guidance, adapters and noise schedule by one name."),
    click.option("--adapters", help="Adapters of the server, such as cinematic:0.8,sketch."),
    click.option(
        "--seed",
        type=click.IntRange(0, MAX_SEED),
        help="Seed of the first variant, for every picture; each further variant has the next one.",
    ),
    click.option("--negative-prompt", help="What guidance steers away from."),
    click.option(
        "--format",
        "output_format",
        type=click.Choice(get_args(OutputFormat)),
        default="png",
        help="Format of the outputs.",
    ),
    click.option(
        "--quality", "output_compression", type=click.IntRange(0, MAX_COMPRESSION), help="Quality of jpeg and webp."
    ),
    click.option("--model", help="Model that must answer."),
    click.option(
        "--background",
        type=click.Choice(get_args(Background)),
        help="Keep transparency (auto), lay on white (opaque), or have it made (transparent).",
    ),
)


def _with_making(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that has a server make pictures."""
    for option in reversed(_MAKING):
        command = option(command)
    return command


@main.command(epilog=_KEY)
@click.argument("pictures", nargs=-1, metavar="PICTURE...")
@click.argument("prompt", metavar="PROMPT")
@click.option("-o", "--out", type=_PATH, metavar="FOLDER", default="edited", help="Folder of the outputs.")
@_with_making
@click.option("--jobs", type=_POSITIVE, default=4, help="Requests at a time.")
@click.option("--overwrite", is_flag=True, help="Edit again what is done, and replace existing outputs.")
@click.option("--size", help="Size of the outputs: auto, original, or WIDTHxHEIGHT in pixels.")
@click.option(
    "--reference",
    "references",
    type=_PATH,
    metavar="FILE",
    multiple=True,
    help="Picture that every edit looks at beside its own; may be repeated.",
)
@click.option(
    "--mask",
    type=_PATH,
    metavar="FILE",
    multiple=True,
    help="Where to edit: transparent parts, or without any the white ones. Once for all pictures, or once for each.",
)
@click.option("--fit", type=click.Choice(get_args(Fit)), help="If --size has another aspect ratio: crop, or recompose.")
def edit(
    pictures: tuple[str, ...],
    prompt: str,
    out: Path,
    server: str,
    jobs: int,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit pictures and folders of them.

    PICTURE is a file, a folder, or a pattern such as 'in/**/*.jpg'; PROMPT, the instruction, comes last. Each picture
    is a request of its own, and several run at a time. The server's defaults hold for options that are left out. The
    same command continues a run that ended early, and tries again what failed.

    \b
    Exit status:
      0   every picture is edited
      1   some failed, the others are edited
      2   the command line cannot be used
      3   stopped by what would fail every picture: no server, a refused key,
          a bad option, a full disk
      130 Ctrl-C
    """  # noqa: D301 - click reads the character \\b
    from serve_app.cli.edit import edit_pictures

    given = cast(EditOptions, {name: value for name, value in options.items() if value not in (None, ())})
    sys.exit(
        edit_pictures(pictures, prompt, given, out=out, server=server, jobs=jobs, overwrite=overwrite, as_json=as_json)
    )


@main.command(epilog=_KEY)
@click.argument("prompt", metavar="PROMPT")
@click.option("-o", "--out", type=_PATH, metavar="FOLDER", default="generated", help="Folder of the outputs.")
@_with_making
@click.option("--size", help="Size of the outputs: auto, or WIDTHxHEIGHT in pixels.")
def generate(prompt: str, out: Path, server: str, as_json: bool, **options: Any) -> None:
    """Make pictures from a text alone.

    Only some models do, such as Qwen-Image-2.1. An output's name ends with its seed; without --seed, every run makes
    others. The server's defaults hold for options that are left out.

    \b
    Exit status:
      0   the pictures are made
      1   they are not
      2   the command line cannot be used
      130 Ctrl-C
    """  # noqa: D301 - click reads the character \\b
    from serve_app.cli.generate import generate_pictures

    given = cast(GenerationOptions, {name: value for name, value in options.items() if value is not None})
    sys.exit(generate_pictures(prompt, given, out=out, server=server, as_json=as_json))


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--model`, `--accept-license` and `--settings`, which has both.

    `command` is called with `read`, which returns the settings or raises ValueError.
    """

    @click.option(
        "--model", help="builtin:tiny, builtin:tiny-plus, a directory, or a hub id.", show_default=BUILTIN_TINY
    )
    @click.option(
        "--accept-license",
        type=click.Choice(get_args(License)),
        help="Accept the licence of a model that is not free for commerce.",
    )
    @click.option(
        "--settings",
        type=_PATH,
        metavar="FILE",
        help="YAML file with all settings: what serve_config.yaml has under `args:`.",
    )
    @wraps(command)
    def wrapped(model: str | None, accept_license: License | None, settings: Path | None, **others: Any) -> None:
        if (model is not None or accept_license is not None) and settings is not None:
            raise click.UsageError("--settings cannot be used together with --model or --accept-license.")
        command(read=partial(_read, model, accept_license, settings), **others)

    return wrapped


def _read(model: str | None, accept_license: License | None, settings: Path | None) -> AppSettings:
    if settings is not None:
        return read_settings(settings)
    source = BUILTIN_TINY if model is None else model
    return AppSettings(model=ModelSettings(source=source, accept_license=accept_license))


@main.command(context_settings=_CONTEXT)
@_with_settings
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on.")
def serve(read: Callable[[], AppSettings], host: str, port: int) -> None:
    """Start the server on this machine, and stop it on SIGINT or SIGTERM.

    The same as `python -m serve_app`. Clusters use serve_config.yaml.
    """
    from serve_app.models.quantization import check_quantization
    from serve_app.models.source import check_source
    from serve_app.store.opening import check_store

    try:
        settings = read()
        # Ray would start all processes three times before it says that one of these cannot be used.
        keys = load_keys(settings.auth)
        check_source(settings.model)
        check_quantization(settings.model)
        check_store(settings)
        check_token_mode()
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    # Before Ray is imported.
    close_ports()
    from serve_app.cli.serve import serve_until_stopped

    # A server with keys that restricts its names names all of them.
    serve_until_stopped(settings if keys else settings.with_host(host), host, port)


@main.command()
@_with_settings
@click.option("--server", metavar="URL", help=f"Check this server, such as {DEFAULT_SERVER}; the key is in {KEY_ENV}.")
def check(read: Callable[[], AppSettings], server: str | None) -> None:
    """Check this installation, or with --server a server.

    Prints a line for each thing that was checked: ok, warning or problem, and what to do. Exit status: 0, or 1 if
    there is a problem.
    """
    from serve_app.cli.check import check_installation, check_server, report

    sys.exit(report(check_installation(read) if server is None else check_server(server)))


def _check_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise click.BadParameter(NAME_RULE)
    return name


@main.command()
@click.argument("name", metavar="NAME", callback=_check_name)
def key(name: str) -> None:
    """Make a random API key for NAME, which the server's log shows.

    The key goes to standard error, this once. Its line for `auth.keys_file` goes to standard output, and does not
    reveal the key:

      image-edits key ann >> keys
    """
    from serve_app.cli.key import print_new_key

    print_new_key(name)
