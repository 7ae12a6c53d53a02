"""Refusals in a replica's log, on the logger that Serve writes to. On a real server: tests/cluster/test_closed.py."""

import logging
from collections.abc import Iterator

import pytest

from serve_app.deployments.logging import log_refusals_in_one_line
from serve_app.errors import DeviceLost, EditError, InvalidInput, OutOfMemory, Overloaded

LOGGER = logging.getLogger("ray.serve")


@pytest.fixture(autouse=True)
def _filtered(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, logger="ray.serve")
    before = list(LOGGER.filters)
    log_refusals_in_one_line()
    yield
    LOGGER.filters[:] = before


def logged(error: Exception, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Log an exception as Serve does after a method raised it."""
    try:
        raise error
    except Exception:
        LOGGER.exception("Request failed.")
    (record,) = caplog.records
    return record


@pytest.mark.parametrize(
    "error", [InvalidInput("prompt: 'secret'", param="prompt"), Overloaded("full", retry_after_s=1)], ids=repr
)
def test_a_refusal_is_one_line(error: EditError, caplog: pytest.LogCaptureFixture) -> None:
    record = logged(error, caplog)
    assert (record.levelname, record.levelno, record.getMessage()) == ("INFO", logging.INFO, "refused")
    assert (vars(record)["status"], vars(record)["code"]) == (error.status, error.code)
    assert "Traceback" not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [OutOfMemory("CUDA out of memory"), DeviceLost("gone"), ValueError("bug")], ids=repr)
def test_a_failure_keeps_its_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    record = logged(error, caplog)
    assert (record.levelname, record.getMessage()) == ("ERROR", "Request failed.")
    assert "Traceback" in caplog.text
