"""The ledger of idempotency keys: who leads, who waits, what is kept and for how long. By a clock of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.errors import GenerationError, IdempotencyKeyReused, Overloaded
from serve_app.idempotency.ledger import LEASE_S, Busy, Claim, Key, Lead, Lease, MemoryLedger, Outcome, Stored
from serve_app.settings import LimitSettings
from tests.fakes import Clock

ANSWER = Stored(200, ((b"content-type", b"application/json"),), b"first")
OTHER = Stored(200, (), b"other")
KEY = Key(None, "k")


class Told:
    """A ledger, and what its callers do."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(LimitSettings(**limits), self.clock)

    async def lead(self, key: Key = KEY, fingerprint: str = "f") -> Lease:
        claim = await self.ledger.claim(key, fingerprint)
        assert isinstance(claim, Lead)
        return claim.lease

    async def ended(self, text: str, answer: Stored = ANSWER) -> None:
        """An edit of this key, from its beginning to its answer."""
        await self.ledger.settle(await self.lead(Key(None, text)), answer)

    async def waiting(self, lease: Lease) -> "asyncio.Task[Outcome]":
        task = asyncio.create_task(self.ledger.wait(lease))
        await asyncio.sleep(0)
        return task

    async def claims(self, *texts: str) -> list[Claim]:
        return [await self.ledger.claim(Key(None, text), "f") for text in texts]


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(story(), 20)

    asyncio.run(go())


def test_the_first_leads_the_others_wait_and_all_have_one_answer() -> None:
    async def story() -> None:
        told = Told()
        lease = await told.lead()
        claim = await told.ledger.claim(KEY, "f")
        assert claim == Busy(lease)
        waiting = [await told.waiting(lease) for _ in range(2)]
        await told.ledger.settle(lease, ANSWER)
        assert [await task for task in waiting] == [ANSWER, ANSWER]
        assert await told.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_another_edit_under_the_same_key_is_refused_while_it_runs_and_after() -> None:
    async def story() -> None:
        told = Told()
        lease = await told.lead()
        with pytest.raises(IdempotencyKeyReused):
            await told.ledger.claim(KEY, "g")
        await told.ledger.settle(lease, ANSWER)
        with pytest.raises(IdempotencyKeyReused) as caught:
            await told.ledger.claim(KEY, "g")
        assert (caught.value.status, caught.value.code, caught.value.param) == (422, "IDEMPOTENCY_KEY_REUSED", None)
        assert await told.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_callers_who_choose_the_same_text_never_meet() -> None:
    async def story() -> None:
        told = Told()
        leases = [await told.lead(Key(caller, "k"), f"of {caller}") for caller in ("ann", "bob", None)]
        for lease, answer in zip(leases, (ANSWER, OTHER, ANSWER), strict=True):
            await told.ledger.settle(lease, answer)
        assert await told.ledger.claim(Key("ann", "k"), "of ann") == ANSWER
        assert await told.ledger.claim(Key("bob", "k"), "of bob") == OTHER

    play(story)


def test_the_leader_is_told_how_many_wait() -> None:
    async def story() -> None:
        told = Told()
        lease = await told.lead()
        assert await told.ledger.renew(lease) == 0
        stays, leaves = await told.waiting(lease), await told.waiting(lease)
        assert await told.ledger.renew(lease) == 2
        leaves.cancel()
        await asyncio.wait([leaves])
        assert await told.ledger.renew(lease) == 1
        await told.ledger.settle(lease, ANSWER)
        assert await stays == ANSWER

    play(story)


def test_a_failure_is_told_to_those_who_wait_and_not_kept() -> None:
    async def story() -> None:
        told = Told()
        lease = await told.lead()
        waiting = await told.waiting(lease)
        failure = GenerationError("CUDA out of memory")
        await told.ledger.settle(lease, failure)
        assert await waiting is failure
        # Whatever its body, since nothing has come of the first one.
        again = await told.lead(fingerprint="g")
        assert again.id != lease.id

    play(story)


def test_a_lease_that_is_not_renewed_goes_to_who_claims_next() -> None:
    async def story() -> None:
        told = Told()
        dead = await told.lead()
        waiting = await told.waiting(dead)
        told.clock.now_s += LEASE_S - 0.1
        told.ledger.sweep()
        assert not waiting.done()
        told.clock.now_s += 0.2
        told.ledger.sweep()
        assert await waiting is None
        lease = await told.lead()
        # It was only slow. Its caller has its answer; the key is the other's.
        assert await told.ledger.renew(dead) == 0
        await told.ledger.settle(dead, OTHER)
        assert await told.ledger.claim(KEY, "f") == Busy(lease)
        assert await told.ledger.wait(dead) is None
        await told.ledger.settle(lease, ANSWER)
        await told.ledger.settle(dead, OTHER)
        assert await told.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_a_lease_that_is_renewed_is_kept_as_long_as_the_edit_takes() -> None:
    async def story() -> None:
        told = Told()
        lease = await told.lead()
        for _ in range(5):
            told.clock.now_s += LEASE_S - 1
            await told.ledger.renew(lease)
            told.ledger.sweep()
        assert await told.ledger.claim(KEY, "f") == Busy(lease)

    play(story)


def test_an_answer_is_kept_for_its_time() -> None:
    async def story() -> None:
        told = Told(idempotency_ttl_s=60)
        await told.ended("k")
        told.clock.now_s += 59
        assert await told.claims("k") == [ANSWER]
        told.clock.now_s += 2
        await told.lead()

    play(story)


def test_the_oldest_answer_makes_room_for_a_new_key_and_an_edit_that_runs_never_does() -> None:
    async def story() -> None:
        told = Told(idempotency_max_keys=3)
        await told.lead(Key(None, "runs"))
        await told.ended("a")
        await told.ended("b")
        await told.lead(Key(None, "c"))
        assert await told.claims("b") == [ANSWER]
        await told.lead(Key(None, "a"))
        with pytest.raises(Overloaded) as caught:
            await told.lead(Key(None, "d"))
        assert caught.value.retry_after_s
        assert [type(claim) for claim in await told.claims("runs", "c", "a")] == [Busy] * 3

    play(story)


def test_the_oldest_answers_make_room_for_the_bytes_of_a_new_one() -> None:
    async def story() -> None:
        told = Told(idempotency_max_bytes=10)
        for text in "abc":
            await told.ended(text, Stored(200, (), b"four"))
        assert [type(claim) for claim in await told.claims("b", "c", "a")] == [Stored, Stored, Lead]
        await told.ended("d", Stored(200, (), b"whole tens"))
        assert [type(claim) for claim in await told.claims("d", "b", "c")] == [Stored, Lead, Lead]

    play(story)


def test_an_answer_over_the_bound_goes_to_those_who_wait_and_is_not_kept() -> None:
    async def story() -> None:
        told = Told(idempotency_max_bytes=5)
        await told.ended("small", ANSWER)
        lease = await told.lead()
        waiting = await told.waiting(lease)
        large = Stored(200, (), b"sixsix")
        await told.ledger.settle(lease, large)
        assert await waiting == large
        assert [type(claim) for claim in await told.claims("k", "small")] == [Lead, Stored]

    play(story)


def test_a_ledger_that_begins_anew_takes_on_the_leases_of_the_one_before() -> None:
    async def story() -> None:
        lease, done = await Told().lead(), await Told().lead(Key(None, "done"))
        told = Told()
        assert await told.ledger.renew(lease) == 0
        assert await told.ledger.claim(KEY, "f") == Busy(lease)
        with pytest.raises(IdempotencyKeyReused):
            await told.ledger.claim(KEY, "g")
        await told.ledger.settle(done, ANSWER)
        assert await told.claims("done") == [ANSWER]

    play(story)
