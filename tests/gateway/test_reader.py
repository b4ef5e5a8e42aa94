import asyncio
from collections.abc import AsyncIterator

import pytest
from django.db import connection

from billing.batcher import StoreUnavailable
from gateway.reader import Reader


@pytest.fixture
async def reader(committed: None) -> AsyncIterator[Reader]:
    reader = Reader(waiting_max=2, timeout_ms=200)
    yield reader
    await reader.aclose()


def ask(statement: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return str(cursor.fetchone()[0])


async def test_a_question_that_takes_too_long_is_given_up(reader: Reader) -> None:
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await reader.read(lambda: ask("SELECT pg_sleep(30)"))

    assert await reader.read(lambda: ask("SHOW statement_timeout")) == "200ms"


async def test_no_more_questions_wait_than_may(reader: Reader) -> None:
    questions = [reader.read(lambda: ask("SELECT pg_sleep(30)")) for _ in range(3)]

    outcomes = await asyncio.gather(*questions, return_exceptions=True)

    assert [str(outcome) for outcome in outcomes] == [
        *["the database did not answer"] * 2,
        "too many questions wait for the database",
    ]


async def test_a_broken_connection_is_replaced(reader: Reader) -> None:
    with pytest.raises(StoreUnavailable):
        await reader.read(lambda: ask("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert await reader.read(lambda: ask("SELECT 1")) == "1"
