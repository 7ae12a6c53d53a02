"""Ours for the errors of Ray and Serve, around one call by handle."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from serve_app.deployments.retries import ReplicaGone
from serve_app.errors import RETRY_AFTER_S, DeadlineExceeded, DeviceLost, EditError, NotReady, Overloaded

DEADLINE_MARGIN_S = 2.0
"""A replica keeps the deadline itself, and counts it. Its caller waits this much longer, for one that is not there."""


def cancel(response: DeploymentResponse | DeploymentResponseGenerator) -> None:
    """Whether the call has ended or not. Of one that no replica took, Ray (2.60) raises here again why."""
    with suppress(RayError, RayServeException):
        response.cancel()


@contextmanager
def our_errors(response: DeploymentResponse | DeploymentResponseGenerator, timeout_s: float) -> Iterator[None]:
    """Ours for Ray's, ReplicaGone among them; a call that is still open after its deadline is cancelled."""
    try:
        yield
    except TimeoutError:
        cancel(response)
        raise DeadlineExceeded.after(timeout_s) from None
    except RayTaskError as error:
        if isinstance(error.cause, DeviceLost):
            raise ReplicaGone(str(error.cause)) from None
        if isinstance(error.cause, DeadlineExceeded):
            # The replica was given what was left.
            raise DeadlineExceeded.after(timeout_s) from None
        raise error.cause if isinstance(error.cause, EditError) else error from None
    except BackPressureError as error:
        message = "Too many requests wait for a GPU"
        raise Overloaded(message, retry_after_s=round(error.retry_after_s or RETRY_AFTER_S)) from None
    except DeploymentUnavailableError:
        raise NotReady("No replica has a warm model", retry_after_s=RETRY_AFTER_S) from None
    except (RayActorError, WorkerCrashedError, ObjectLostError) as error:
        raise ReplicaGone(type(error).__name__) from error
    except asyncio.CancelledError:
        # Ray (2.60) ends it by itself only where the request ends in whose context it was called.
        cancel(response)
        raise
