"""The ledger of idempotency keys: leaders, followers, kept answers and their time, on a clock that the tests move."""

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


class LedgerCase:
    """A ledger, and the actions of its callers."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(LimitSettings(**limits), self.clock)

    async def lead(self, key: Key = KEY, fingerprint: str = "f") -> Lease:
        claim = await self.ledger.claim(key, fingerprint)
        assert isinstance(claim, Lead)
        return claim.lease

    async def ended(self, text: str, answer: Stored = ANSWER) -> None:
        """Lead an edit of this key, from its beginning to its answer."""
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
        case = LedgerCase()
        lease = await case.lead()
        claim = await case.ledger.claim(KEY, "f")
        assert claim == Busy(lease)
        waiting = [await case.waiting(lease) for _ in range(2)]
        await case.ledger.settle(lease, ANSWER)
        assert [await task for task in waiting] == [ANSWER, ANSWER]
        assert await case.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_another_edit_under_the_same_key_is_refused_while_it_runs_and_after() -> None:
    async def story() -> None:
        case = LedgerCase()
        lease = await case.lead()
        with pytest.raises(IdempotencyKeyReused):
            await case.ledger.claim(KEY, "g")
        await case.ledger.settle(lease, ANSWER)
        with pytest.raises(IdempotencyKeyReused) as caught:
            await case.ledger.claim(KEY, "g")
        assert (caught.value.status, caught.value.code, caught.value.param) == (422, "IDEMPOTENCY_KEY_REUSED", None)
        assert await case.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_callers_with_the_same_text_never_share_a_key() -> None:
    async def story() -> None:
        case = LedgerCase()
        leases = [await case.lead(Key(caller, "k"), f"of {caller}") for caller in ("ann", "bob", None)]
        for lease, answer in zip(leases, (ANSWER, OTHER, ANSWER), strict=True):
            await case.ledger.settle(lease, answer)
        assert await case.ledger.claim(Key("ann", "k"), "of ann") == ANSWER
        assert await case.ledger.claim(Key("bob", "k"), "of bob") == OTHER

    play(story)


def test_the_leader_gets_the_number_of_followers() -> None:
    async def story() -> None:
        case = LedgerCase()
        lease = await case.lead()
        assert await case.ledger.renew(lease) == 0
        stays, leaves = await case.waiting(lease), await case.waiting(lease)
        assert await case.ledger.renew(lease) == 2
        leaves.cancel()
        await asyncio.wait([leaves])
        assert await case.ledger.renew(lease) == 1
        await case.ledger.settle(lease, ANSWER)
        assert await stays == ANSWER

    play(story)


def test_a_failure_reaches_the_followers_and_is_not_kept() -> None:
    async def story() -> None:
        case = LedgerCase()
        lease = await case.lead()
        waiting = await case.waiting(lease)
        failure = GenerationError("CUDA out of memory")
        await case.ledger.settle(lease, failure)
        assert await waiting is failure
        # Whatever its body is, since the first one has no answer.
        again = await case.lead(fingerprint="g")
        assert again.id != lease.id

    play(story)


def test_a_lease_that_is_not_renewed_goes_to_the_next_claim() -> None:
    async def story() -> None:
        case = LedgerCase()
        dead = await case.lead()
        waiting = await case.waiting(dead)
        case.clock.now_s += LEASE_S - 0.1
        case.ledger.sweep()
        assert not waiting.done()
        case.clock.now_s += 0.2
        case.ledger.sweep()
        assert await waiting is None
        lease = await case.lead()
        # The first was only slow. Its caller gets its answer, but the key belongs to the second.
        assert await case.ledger.renew(dead) == 0
        await case.ledger.settle(dead, OTHER)
        assert await case.ledger.claim(KEY, "f") == Busy(lease)
        assert await case.ledger.wait(dead) is None
        await case.ledger.settle(lease, ANSWER)
        await case.ledger.settle(dead, OTHER)
        assert await case.ledger.claim(KEY, "f") == ANSWER

    play(story)


def test_a_lease_that_is_renewed_is_kept_as_long_as_the_edit_takes() -> None:
    async def story() -> None:
        case = LedgerCase()
        lease = await case.lead()
        for _ in range(5):
            case.clock.now_s += LEASE_S - 1
            await case.ledger.renew(lease)
            case.ledger.sweep()
        assert await case.ledger.claim(KEY, "f") == Busy(lease)

    play(story)


def test_an_answer_is_kept_for_its_time() -> None:
    async def story() -> None:
        case = LedgerCase(idempotency_ttl_s=60)
        await case.ended("k")
        case.clock.now_s += 59
        assert await case.claims("k") == [ANSWER]
        case.clock.now_s += 2
        await case.lead()

    play(story)


def test_the_oldest_answer_makes_room_for_a_new_key_and_an_edit_that_runs_never_does() -> None:
    async def story() -> None:
        case = LedgerCase(idempotency_max_keys=3)
        await case.lead(Key(None, "runs"))
        await case.ended("a")
        await case.ended("b")
        await case.lead(Key(None, "c"))
        assert await case.claims("b") == [ANSWER]
        await case.lead(Key(None, "a"))
        with pytest.raises(Overloaded) as caught:
            await case.lead(Key(None, "d"))
        assert caught.value.retry_after_s
        assert [type(claim) for claim in await case.claims("runs", "c", "a")] == [Busy] * 3

    play(story)


def test_the_oldest_answers_make_room_for_the_bytes_of_a_new_one() -> None:
    async def story() -> None:
        case = LedgerCase(idempotency_max_bytes=10)
        for text in "abc":
            await case.ended(text, Stored(200, (), b"four"))
        assert [type(claim) for claim in await case.claims("b", "c", "a")] == [Stored, Stored, Lead]
        await case.ended("d", Stored(200, (), b"whole tens"))
        assert [type(claim) for claim in await case.claims("d", "b", "c")] == [Stored, Lead, Lead]

    play(story)


def test_an_answer_over_the_bound_goes_to_the_followers_and_is_not_kept() -> None:
    async def story() -> None:
        case = LedgerCase(idempotency_max_bytes=5)
        await case.ended("small", ANSWER)
        lease = await case.lead()
        waiting = await case.waiting(lease)
        large = Stored(200, (), b"sixsix")
        await case.ledger.settle(lease, large)
        assert await waiting == large
        assert [type(claim) for claim in await case.claims("k", "small")] == [Lead, Stored]

    play(story)


def test_a_ledger_that_begins_anew_takes_on_the_leases_of_the_one_before() -> None:
    async def story() -> None:
        lease, done = await LedgerCase().lead(), await LedgerCase().lead(Key(None, "done"))
        case = LedgerCase()
        assert await case.ledger.renew(lease) == 0
        assert await case.ledger.claim(KEY, "f") == Busy(lease)
        with pytest.raises(IdempotencyKeyReused):
            await case.ledger.claim(KEY, "g")
        await case.ledger.settle(done, ANSWER)
        assert await case.claims("done") == [ANSWER]

    play(story)
