"""The log filter that shortens refusals in a replica's log to one line each.

Serve (2.60) logs every exception of a method at ERROR, with its traceback. A refusal is no failure, and under overload
there are many.
"""

import logging

from serve_app.errors import EditError, GenerationError


def log_refusals_in_one_line() -> None:
    """Log refusals as one line at INFO, in this process and from now on."""
    # The filter belongs to the logger and not to its handlers, which Serve replaces with each configuration.
    logging.getLogger("ray.serve").addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, EditError) and not isinstance(error, GenerationError):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        # Without the error's message, which may quote the caller.
        record.msg, record.args, record.exc_info = "refused", (), None
        vars(record).update(status=error.status, code=error.code)
    return True
