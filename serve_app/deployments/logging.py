"""Refusals in the log of a replica: a line each.

Serve (2.60) writes a traceback at ERROR of whatever a method raises. A refusal is no failure, and under overload there
are many.
"""

import logging

from serve_app.errors import EditError, GenerationError


def log_in_one_line() -> None:
    """In this process, from now on."""
    # Of the logger and not of its handlers, which Serve makes anew with each configuration.
    logging.getLogger("ray.serve").addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, EditError) and not isinstance(error, GenerationError):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        # Not its message, which may hold the caller's words.
        record.msg, record.args, record.exc_info = "refused", (), None
        vars(record).update(status=error.status, code=error.code)
    return True
