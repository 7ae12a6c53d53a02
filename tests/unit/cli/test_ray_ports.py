"""What the command sets for Ray's own ports; tests/slow/test_commands.py shows what the ports then do."""

import os

import pytest
from click.testing import CliRunner

from serve_app.cli.main import main
from serve_app.cli.ray_ports import check_token_mode, close_ports

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        # Set first, so that what a test sets is removed after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("mode", ["disabled", ""])
def test_without_tokens_no_server_starts(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: RAY_AUTH_MODE={mode} in the environment turns Ray's tokens off")


@pytest.mark.parametrize("mode", ["token", "TOKEN", None])
def test_with_tokens_one_may(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    check_token_mode()


def test_each_start_has_a_token_of_its_own_unless_it_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = set()
    for _ in range(2):
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        close_ports()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    assert min(map(len, tokens)) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    close_ports()
    assert os.environ["RAY_AUTH_TOKEN"] == "given"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/file")
    close_ports()
    assert "RAY_AUTH_TOKEN" not in os.environ
