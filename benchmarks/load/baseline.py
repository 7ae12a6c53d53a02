"""The server of another commit as a contender, from a worktree of git that is gone after the measurement."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load.contender import Contender
from benchmarks.load.servers import ROOT

BASELINE = "baseline"


def find_commit(name: str) -> str:
    """Return the hash of the commit that `name` names in git. Raises ValueError for any other name."""
    try:
        return _git("rev-parse", "--verify", "--short", f"{name}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ValueError(f"git finds no commit {name!r}: {error.stderr.strip()}") from error


@contextmanager
def checked_out(commit: str) -> Iterator[Contender]:
    """Return ours as it was at a commit. Its program must take the arguments of benchmarks/load/contenders/ours.py."""
    with tempfile.TemporaryDirectory(prefix="baseline-") as folder:
        root = Path(folder, "tree")
        _git("worktree", "add", "--detach", str(root), commit)
        try:
            yield Contender(BASELINE, f"ours at {commit}", f"our server as of commit {commit}", "ours", root=root)
        finally:
            _git("worktree", "remove", "--force", str(root))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
