"""The command `image-edits`."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

DISTRIBUTION = "serve-image-edits"


# Imported when they are asked for: who edits pictures does not wait for Ray.
def _edit(prog: str, words: Sequence[str]) -> int:
    from serve_app.cli.edit import main

    return main(prog, words)


def _serve(prog: str, words: Sequence[str]) -> int:
    from serve_app.cli.serve import main

    main(prog, words)
    return 0


def _check(prog: str, words: Sequence[str]) -> int:
    from serve_app.cli.check import main

    return main(prog, words)


def _key(prog: str, words: Sequence[str]) -> int:
    from serve_app.cli.key import main

    return main(prog, words)


_COMMANDS: dict[str, tuple[Callable[[str, Sequence[str]], int], str]] = {
    "edit": (_edit, "edit pictures and folders of them"),
    "serve": (_serve, "start the server; the same as `python -m serve_app`"),
    "key": (_key, "make an API key for the server"),
    "check": (_check, "tell what is wrong with this installation, or with a server"),
}


def main() -> None:
    """Run the command that the command line names, and exit with its status."""
    lines = [f"  {name:8}{text}" for name, (_, text) in _COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="image-edits",
        description="Edit pictures by instruction.",
        epilog="\n".join(["commands:", *lines, "", "image-edits COMMAND --help tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version(DISTRIBUTION))
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(sys.argv[1:2]).command
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may be of bytes that no encoding has; stderr is so already.
        sys.stdout.reconfigure(errors="backslashreplace")
    run, _ = _COMMANDS[command]
    sys.exit(run(f"image-edits {command}", sys.argv[2:]))
