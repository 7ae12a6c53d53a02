"""The vault of jobs: what it stores, and for which owner."""

import asyncio

import pytest

from serve_app.jobs.vault import MemoryVault, Superseded


def test_a_new_owner_finds_what_was_put_in_the_order_of_the_last_puts() -> None:
    async def story() -> None:
        vault = MemoryVault()
        assert await vault.take_over("first") == {}
        await vault.put("first", "a", b"state a", b"form a")
        await vault.put("first", "b", b"state b", b"form b")
        await vault.put("first", "c", b"state c", b"form c")
        await vault.put("first", "a", b"ended", b"result")
        await vault.drop("first", "b")
        await vault.drop("first", "unknown")
        states = await vault.take_over("second")
        assert list(states.items()) == [("c", b"state c"), ("a", b"ended")]
        assert await vault.body("second", "a") == b"result"
        with pytest.raises(KeyError):
            await vault.body("second", "b")

    asyncio.run(story())


def test_only_the_last_owner_is_listened_to() -> None:
    async def story() -> None:
        vault = MemoryVault()
        await vault.take_over("first")
        await vault.put("first", "a", b"state", b"form")
        await vault.take_over("second")
        for late in (
            vault.put("first", "a", b"late", b"late"),
            vault.body("first", "a"),
            vault.drop("first", "a"),
            vault.put("nobody", "a", b"late", b"late"),
        ):
            with pytest.raises(Superseded):
                await late
        assert await vault.body("second", "a") == b"form"
        assert await vault.take_over("second") == {"a": b"state"}

    asyncio.run(story())


def test_without_an_owner_every_call_is_refused() -> None:
    with pytest.raises(Superseded):
        asyncio.run(MemoryVault().put("first", "a", b"state", b"form"))
