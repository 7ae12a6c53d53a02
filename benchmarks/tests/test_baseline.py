"""The worktree of another commit."""

import subprocess

import pytest

from benchmarks.load.baseline import checked_out, find_commit
from benchmarks.load.servers import ROOT


def worktrees() -> str:
    return subprocess.run(["git", "worktree", "list"], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_a_commit_is_checked_out_for_a_while():
    before = worktrees()
    with checked_out(find_commit("HEAD")) as contender:
        assert contender.root is not None
        assert (contender.root / "benchmarks/load/contenders/ours.py").is_file()
        assert str(contender.root) in worktrees()
    assert not contender.root.exists()
    assert worktrees() == before


def test_a_name_that_is_no_commit_is_an_error_with_the_name():
    with pytest.raises(ValueError, match="git finds no commit 'no-such'"):
        find_commit("no-such")
