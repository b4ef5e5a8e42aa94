"""The spool keeps what it was given, whatever happens to its file and its owner."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from billing import spool
from billing.spool import DAMAGED_SUFFIX, Spool, SpoolUnavailable
from gateway.request_ids import new_request_id

OWNER = UUID(int=7)


def body(request_id: UUID, text: str = "é") -> bytes:
    return f'{{"request_id":"{request_id}","status":"ok","text":"{text}"}}'.encode()


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Spool]:
    own = Spool(tmp_path, OWNER, bytes_max=2**20)
    await own.open()
    yield own
    await own.close()


def found(path: Path) -> list[UUID]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [each.request_id for part in spool.records(descriptor) for each in part.records]
    finally:
        os.close(descriptor)


async def test_what_is_appended_is_read_in_order(own: Spool) -> None:
    ids = [new_request_id() for _ in range(300)]

    await asyncio.gather(*(own.append(body(each)) for each in ids))

    assert found(own.path) == ids
    reading = await own.read(0)
    assert reading.records[0].body == body(ids[0])
    assert await own.clear(reading.end)
    assert own.path.stat().st_size == own.rows == 0


async def test_what_came_meanwhile_is_not_cleared(own: Spool) -> None:
    await own.append(body(new_request_id()))
    reading = await own.read(0)
    late = new_request_id()
    await own.append(body(late))

    assert not await own.clear(reading.end)
    assert [each.request_id for each in (await own.read(reading.end)).records] == [late]


async def test_a_torn_last_record_is_left_out(own: Spool) -> None:
    ids = [new_request_id() for _ in range(3)]
    await asyncio.gather(*(own.append(body(each)) for each in ids))

    os.truncate(own.path, own.path.stat().st_size - 5)

    assert found(own.path) == ids[:2]


async def test_a_damaged_record_hides_no_other_and_the_file_is_kept(own: Spool) -> None:
    ids = [new_request_id() for _ in range(3)]
    await asyncio.gather(*(own.append(body(each)) for each in ids))
    data = bytearray(own.path.read_bytes())
    data[data.index(str(ids[1]).encode())] ^= 1
    own.path.write_bytes(data)

    reading = await own.read(0)
    assert ([each.request_id for each in reading.records], reading.damaged) == (
        [ids[0], ids[2]],
        1,
    )
    spool.discard(own.path, damaged=True)
    assert own.path.with_name(own.path.name + DAMAGED_SUFFIX).read_bytes() == data


async def test_only_the_file_of_a_dead_owner_can_be_taken(tmp_path: Path) -> None:
    own = Spool(tmp_path, OWNER, bytes_max=2**20)
    await own.open()
    await own.append(body(new_request_id()))
    with spool.orphan(own.path) as descriptor:
        assert descriptor is None

    await own.close()
    with spool.orphan(own.path) as descriptor:
        assert descriptor is not None
        with spool.orphan(own.path) as second:
            assert second is None


async def test_an_empty_file_is_gone_with_its_owner(tmp_path: Path) -> None:
    own = Spool(tmp_path, OWNER, bytes_max=2**20)
    await own.open()
    await own.close()

    assert os.listdir(tmp_path) == []


async def test_a_full_spool_refuses_and_says_so(tmp_path: Path) -> None:
    own = Spool(tmp_path, OWNER, bytes_max=450)
    await own.open()

    for _ in range(5):
        await own.append(body(new_request_id()))
    with pytest.raises(SpoolUnavailable, match="full"):
        await own.append(body(new_request_id()))
    assert own.trouble == "the spool is full"

    assert await own.clear((await own.read(0)).end)
    await own.check()
    assert own.trouble is None
    await own.close()


async def test_a_disk_that_takes_nothing_is_noticed_and_so_is_its_recovery(tmp_path: Path) -> None:
    own = Spool(tmp_path / "not" / "there", OWNER, bytes_max=2**20)
    (tmp_path / "not").write_text("")
    await own.open()
    assert own.trouble is not None
    with pytest.raises(SpoolUnavailable):
        await own.append(body(new_request_id()))

    (tmp_path / "not").unlink()
    await own.check()
    await own.append(body(new_request_id()))
    await own.close()


async def test_a_disk_that_fills_in_the_middle_of_a_record_hides_none(
    own: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [new_request_id() for _ in range(2)]
    await own.append(body(ids[0]))
    write = os.write
    with monkeypatch.context() as disk:
        sizes = iter([20])

        def fills(descriptor: int, data: bytes) -> int:
            size = next(sizes, None)
            if size is None:
                raise OSError(28, "full")
            return write(descriptor, data[:size])

        disk.setattr(os, "write", fills)
        with pytest.raises(SpoolUnavailable):
            await own.append(body(new_request_id()))
    await own.append(body(ids[1]))

    assert found(own.path) == ids
