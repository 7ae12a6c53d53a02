"""`sharing` as a request router of Ray Serve: `request_router_class: benchmarks.fleet.sharing_router.SharingRouter`.

Each handle has a router of its own, which sees what that handle sent and how many requests each replica has.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from benchmarks.fleet.sharing import View, Work, ranked
from serve_app.engine.sampling import SamplingDefaults
from serve_app.engine.scheduler import expand
from serve_app.images.geometry import Geometry
from serve_app.request import EditRequest

# Longer than any edit may take. Nothing else shows that a caller left between choice and sending.
_FORGET_S = 3600.0


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """The facts by which a router expands requests as the replica does, sent by `record_replica_metadata`."""

    native_area: int
    token_side: int
    default_steps: int
    default_guidance: float
    knee_tokens: int

    def work(self, request: EditRequest, *, alone: bool) -> Work:
        geometry = Geometry(self.native_area, self.token_side)
        steps, guidance = self.default_steps, self.default_guidance
        return Work.of(expand(request, geometry, defaults=SamplingDefaults(steps, guidance), alone=alone))


@dataclass(slots=True)
class _Sent:
    """An edit on its way to a replica, or at it. `request_id`: Serve's, the same for all calls of one request to us."""

    pending: PendingRequest
    request_id: str
    replica_id: ReplicaID
    work: Work
    at_s: float


class SharingRouter(RequestRouter):  # type: ignore[misc]
    """A router that sends an edit where it shares steps soonest, and any other call where the fewest requests are.

    Without Serve's FIFOMixin, which would assign a choice to the request that has waited longest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: list[_Sent] = []

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return all replicas, the best first, each a rank of its own; Serve takes the first that is not full."""
        await self._probe(candidate_replicas)
        replicas = [replica for replica in candidate_replicas if replica.replica_id in self.curr_replicas]
        random.shuffle(replicas)
        if pending_request is None:
            return [[replica] for replica in replicas]
        # Without it, Serve calls again at once, and again, while all are full.
        pending_request.routing_context.should_backoff = True
        self._forget(pending_request)
        work = _work_of(pending_request, replicas)
        if work is None:
            return [[replica] for replica in sorted(replicas, key=self._requests_at)]
        views = [self._view(replica) for replica in replicas]
        order = ranked(views, work)
        if order and views[order[0]].has_room:
            self._note(pending_request, replicas[order[0]], work)
        return [[replicas[index]] for index in order]

    async def _probe(self, replicas: Sequence[RunningReplica]) -> None:
        """Ask replicas for their number of requests if it is not in the cache, or no longer."""
        unknown = [replica for replica in replicas if self.replica_queue_len_cache.get(replica.replica_id) is None]
        if unknown:
            await self._probe_queue_lens(unknown, 0)

    def _forget(self, pending: PendingRequest) -> None:
        """Remove an earlier choice for the same request, and edits whose completion will never be reported."""
        since_s = time.monotonic() - _FORGET_S
        self._sent = [
            one
            for one in self._sent
            if one.pending is not pending
            and not one.pending.future.cancelled()
            and one.replica_id in self.curr_replicas
            and one.at_s > since_s
        ]

    def _note(self, pending: PendingRequest, replica: RunningReplica, work: Work) -> None:
        """Count the edit from the choice on: the next choice may come before this edit is sent."""
        request_id = pending.metadata.internal_request_id
        self._sent.append(_Sent(pending, request_id, replica.replica_id, work, time.monotonic()))

    def _own(self, replica: RunningReplica) -> tuple[Work, ...]:
        return tuple(one.work for one in self._sent if one.replica_id == replica.replica_id)

    def _requests_at(self, replica: RunningReplica) -> int:
        return max(self.replica_queue_len_cache.get(replica.replica_id) or 0, len(self._own(replica)))

    def _view(self, replica: RunningReplica) -> View:
        requests = self._requests_at(replica)
        facts = ReplicaFacts(**replica.replica_metadata)
        return View(self._own(replica), requests, facts.knee_tokens, requests < replica.max_ongoing_requests)

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Assign the replica to the very request that it was chosen for.

        Serve (Ray 2.60) finds this request by an id. All calls that a deployment makes within one request have the same
        id, and all but one of them wait for ever.
        """
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata is request_metadata and not pending.future.done():
                self._record_queue_wait_time(pending)
                self._remove_pending_request_from_indices(pending)
                pending.future.set_result(replica)
                return

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note which replica took the edit; it may be another than was chosen here."""
        for one in self._sent:
            if one.pending is pending_request:
                one.replica_id = replica_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Remove an edit that is answered, has failed or was cancelled."""
        for index, one in enumerate(self._sent):
            if one.replica_id == replica_id and one.request_id == internal_request_id:
                del self._sent[index]
                return


def _work_of(pending: PendingRequest, replicas: Sequence[RunningReplica]) -> Work | None:
    """Return the work of an edit, None for any other call."""
    arguments = (*pending.args, *pending.kwargs.values())
    request = next((argument for argument in arguments if isinstance(argument, EditRequest)), None)
    if request is None or not replicas:
        return None
    facts = ReplicaFacts(**replicas[0].replica_metadata)
    return facts.work(request, alone=bool(pending.kwargs.get("alone", False)))
