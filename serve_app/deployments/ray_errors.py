"""The translation of errors that Ray and Serve raise from a call by handle into those of `serve_app.errors`."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator
from starlette.requests import ClientDisconnect

from serve_app.deployments.retries import ReplicaGone
from serve_app.errors import RETRY_AFTER_S, DeadlineExceeded, DeviceLost, EditError, NotReady, Overloaded, TakesTooLong

DEADLINE_MARGIN_S = 2.0
"""How long after the deadline a caller gives up. Only a lost replica needs it: a live one enforces the deadline."""

_Response: TypeAlias = DeploymentResponse | DeploymentResponseGenerator


def cancel(response: _Response) -> None:
    """Cancel a call, whether it has ended or not."""
    # If no replica took the call, Ray (2.60) raises the reason here once more.
    with suppress(RayError, RayServeException):
        response.cancel()


@contextmanager
def translate_ray_errors(response: _Response, timeout_s: float) -> Iterator[None]:
    """Raise EditError or ReplicaGone for the errors of Ray; cancel the call if it times out or is cancelled.

    Raise ClientDisconnect if Ray cancelled the call, as it does with those of a request whose own caller has left.
    `timeout_s`: the edit's time limit, for the message of DeadlineExceeded.
    """
    try:
        yield
    except TimeoutError:
        cancel(response)
        raise DeadlineExceeded.after(timeout_s) from None
    except RayTaskError as error:
        if isinstance(error.cause, DeviceLost):
            raise ReplicaGone(str(error.cause)) from None
        if isinstance(error.cause, DeadlineExceeded) and not isinstance(error.cause, TakesTooLong):
            # The replica's own limit was only the time left for this attempt.
            raise DeadlineExceeded.after(timeout_s) from None
        raise error.cause if isinstance(error.cause, EditError) else error from None
    except BackPressureError as error:
        message = "Too many requests are waiting for a GPU"
        raise Overloaded(message, retry_after_s=round(error.retry_after_s or RETRY_AFTER_S)) from None
    except DeploymentUnavailableError:
        raise NotReady("No replica has a warm model", retry_after_s=RETRY_AFTER_S) from None
    except TaskCancelledError:
        raise ClientDisconnect from None
    except (RayActorError, WorkerCrashedError, ObjectLostError) as error:
        raise ReplicaGone(type(error).__name__) from error
    except asyncio.CancelledError:
        # Ray (2.60) cancels the call itself only at the end of the request in whose context it was made.
        cancel(response)
        raise
