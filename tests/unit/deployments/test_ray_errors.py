"""Errors of Ray as a caller meets them; most are shown by real ones, in tests/cluster."""

from typing import Any

import pytest
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError

from serve_app.deployments.ray_errors import translate_ray_errors
from serve_app.errors import Overloaded

NO_RESPONSE: Any = None


@pytest.mark.parametrize(
    "error", [ObjectStoreFullError("full"), OutOfDiskError("full")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("on_the_replica", [False, True])
def test_a_store_without_room_is_an_overload_that_says_what_is_full(error: Exception, on_the_replica: bool) -> None:
    raised = RayTaskError("edit", "its traceback", error) if on_the_replica else error
    with (
        pytest.raises(Overloaded, match="object store is full, and so is the disk") as caught,
        translate_ray_errors(NO_RESPONSE, timeout_s=1),
    ):
        raise raised
    assert caught.value.retry_after_s
