"""One timer for many waits."""

import asyncio
from contextlib import suppress

import pytest

from gateway.patience import Patience


async def test_a_wait_that_is_too_long_ends() -> None:
    patience = Patience()

    with pytest.raises(TimeoutError), patience.of(0.01):
        await asyncio.sleep(5)


async def test_many_short_waits_are_longer_than_the_timeout_together() -> None:
    patience = Patience()

    for _ in range(10):
        with patience.of(0.05):
            await asyncio.sleep(0.01)


async def test_the_time_between_two_waits_does_not_count() -> None:
    patience = Patience()

    for _ in range(2):
        with patience.of(0.02):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)


async def test_it_can_be_waited_again_after_it_was_over() -> None:
    patience = Patience()

    for _ in range(2):
        with pytest.raises(TimeoutError), patience.of(0.01):
            await asyncio.sleep(5)
    with patience.of(5):
        await asyncio.sleep(0)


async def test_a_shorter_wait_after_a_longer_one_ends_in_time() -> None:
    patience = Patience()

    with patience.of(60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), patience.of(0.01):
        await asyncio.sleep(5)


async def test_a_wait_that_is_under_way_can_be_told_to_hurry() -> None:
    patience = Patience()
    asyncio.get_running_loop().call_later(0.01, patience.hurry, 0.01)

    with pytest.raises(TimeoutError), patience.of(60):
        await asyncio.sleep(5)


async def test_who_was_told_to_hurry_waits_no_longer_the_next_time() -> None:
    patience = Patience()
    patience.hurry(0.01)

    with pytest.raises(TimeoutError), patience.of(60):
        await asyncio.sleep(5)


async def test_who_is_cancelled_is_not_told_of_a_timeout() -> None:
    async def wait() -> None:
        with Patience().of(5):
            await asyncio.sleep(5)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_closed_one_cancels_nobody() -> None:
    patience = Patience()
    with suppress(ZeroDivisionError), patience.of(0.01):
        1 / 0  # noqa: B018 - leaves the wait by an error
    patience.close()

    await asyncio.sleep(0.03)
