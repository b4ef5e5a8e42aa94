"""One of several gateway processes, as far as money goes: `python -m tests.billing.reserving DSN COPIES`.

Each line on its standard input is a hold. It reserves COPIES of it at once, and answers with how many were admitted.
"""

import asyncio
import sys

import django
import msgspec

django.setup()

from billing.holds import Bookkeeper, BudgetExceeded, HoldRow  # noqa: E402 - needs the models
from gateway.request_ids import new_request_id  # noqa: E402


async def main(dsn: str, copies: int) -> None:
    books = Bookkeeper(dsn, rows_max=64, queue_max=5000, reserve_timeout_s=30, settle_timeout_s=30)
    await books.start()
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        hold = msgspec.json.decode(line, type=HoldRow)
        outcomes = await asyncio.gather(*(_reserve(books, hold) for _ in range(copies)))
        sys.stdout.write(f"{sum(outcomes)}\n")
        sys.stdout.flush()
    await books.stop()


async def _reserve(books: Bookkeeper, hold: HoldRow) -> bool:
    copy = msgspec.structs.replace(hold, request_id=new_request_id(), process_id=books.process_id)
    try:
        await books.reserve(copy)
    except BudgetExceeded:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
