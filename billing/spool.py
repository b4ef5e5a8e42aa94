"""The spool: what PostgreSQL could not take in time, kept on disk until it can.

Each gateway process has a file of its own, `<process id>.spool`, which it holds locked for as long as it lives.
A record is one line: the length and the crc32 of a JSON document, and the document. An append returns once the disk
has it (fdatasync, one for all that wait), never on the event loop. Whoever gets the lock of a file whose owner died
may book what is in it: booking is idempotent by request id, so a file that is read twice books nothing twice.

The directory must outlive the process: a volume, in a container.
"""

import asyncio
import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID

import msgspec

logger = logging.getLogger(__name__)
T = TypeVar("T")

SUFFIX = ".spool"
REFUSED_SUFFIX = (
    ".refused"  # rows that PostgreSQL refused: kept, tried again by every reconciliation
)
DAMAGED_SUFFIX = ".damaged"  # files with a record that cannot be read: kept for a person
PROBE_BYTES = 4096
READ_BYTES_MAX = 16 * 2**20  # read at once
RECORD_BYTES_MAX = READ_BYTES_MAX - 64


class SpoolUnavailable(Exception):
    """The spool cannot take a row: the disk is full, the directory is not ours, or the size cap is reached."""


class _Header(msgspec.Struct):
    request_id: UUID


_header = msgspec.json.Decoder(_Header)


@dataclass(frozen=True, slots=True)
class Record:
    """One row on disk: JSON, as the booking functions take it."""

    request_id: UUID
    body: bytes

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Raises msgspec.DecodeError if the body is no row."""
        return cls(_header.decode(body).request_id, body)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds: the records, where reading ended, and how many lines in between made no sense."""

    records: list[Record]
    end: int
    damaged: int = 0


class Spool:
    """The file of one process. `open` it before use; `append` and `read` are safe from one event loop."""

    def __init__(self, directory: Path, owner: UUID, *, bytes_max: int) -> None:
        self.path = directory / f"{owner}{SUFFIX}"
        self.trouble: str | None = "the spool is not open"
        self.rows = 0  # appended by this process and not booked yet
        self._bytes_max = bytes_max
        self._file: int | None = None
        self._size = 0
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    async def open(self) -> None:
        """Make the file and lock it. What is wrong is in `trouble`; `check` tries again."""
        await self.check()

    async def check(self) -> None:
        """Find out whether the disk takes writes, and set `trouble` to what it says, or None."""
        try:
            await self._in_thread(self._check)
        except OSError as error:
            self._complain(error)
        else:
            self.trouble = None if self._size < self._bytes_max else "the spool is full"

    async def append(self, body: bytes) -> None:
        """Return when the row is on disk. Raises SpoolUnavailable: it may or may not be there then."""
        if len(body) > RECORD_BYTES_MAX:
            raise SpoolUnavailable("the row is too long for the spool")
        if self._size + sum(len(line) for line, _ in self._waiting) >= self._bytes_max:
            self.trouble = "the spool is full"
            raise SpoolUnavailable(self.trouble)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_line(body), done))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush(), name="spool")
        await done

    async def read(self, offset: int) -> Reading:
        """Return the next records from there on; none at the end."""
        return await self._in_thread(lambda: _read(self._descriptor, offset))

    async def clear(self, offset: int) -> bool:
        """Empty the file if nothing was appended beyond the offset; return whether that was so."""
        return await self._in_thread(lambda: self._clear(offset))

    async def keep_refused(self, records: list[Record]) -> None:
        """Put rows that PostgreSQL refused into a file of their own."""
        await self._in_thread(lambda: keep_refused(self.path, records))

    async def close(self) -> None:
        """Let go of the file; it is removed if there is nothing in it."""
        if self._flusher is not None:
            await self._flusher
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            data = b"".join(line for line, _ in batch)
            try:
                await self._in_thread(partial(self._write, data))
            except OSError as error:
                self._complain(error)
                for _, done in batch:
                    if not done.done():
                        done.set_exception(SpoolUnavailable(self.trouble))
            else:
                self.rows += len(batch)
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
        self._flusher = None

    def _complain(self, error: OSError) -> None:
        if self.trouble is None or not self.trouble.startswith("the spool cannot"):
            logger.critical("the spool %s cannot be written: %s", self.path, error)
        self.trouble = f"the spool cannot be written: {os.strerror(error.errno or errno.EIO)}"

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # ------------------------------------------------------------ in the thread

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise FileNotFoundError(errno.ENOENT, "the spool is not open")
        return self._file

    def _check(self) -> None:
        """Write something that is not a row, beside the file: an empty disk quota shows only so."""
        if self._file is None:
            self._open()
        probe = self.path.with_suffix(".probe")
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(PROBE_BYTES))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = _locked(self.path)
        _sync_directory(self.path.parent)
        self._size = os.fstat(self._file).st_size

    def _write(self, data: bytes) -> None:
        descriptor = self._descriptor
        if os.fstat(descriptor).st_size > self._size:
            os.ftruncate(descriptor, self._size)  # half a record, of a write that failed
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fdatasync(descriptor)
        self._size += len(data)

    def _clear(self, offset: int) -> bool:
        if self._size > offset:
            return False
        os.ftruncate(self._descriptor, 0)
        self._size = 0
        self.rows = 0
        return True

    def _close(self) -> None:
        if self._file is None:
            return
        if not self._size:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None


@contextmanager
def orphan(path: Path) -> Iterator[int | None]:
    """Lock a spool whose owner is dead: its descriptor, or None if it lives or the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor if _is_at(path, descriptor) else None
    finally:
        os.close(descriptor)


def files(directory: Path) -> list[Path]:
    """Return the spools and the refused rows that lie there, oldest name first."""
    return sorted((*directory.glob(f"*{SUFFIX}"), *directory.glob(f"*{REFUSED_SUFFIX}")))


def records(descriptor: int) -> Iterator[Reading]:
    """Read a file to its end, some megabytes at a time."""
    offset = 0
    while (reading := _read(descriptor, offset)).end > offset:
        yield reading
        offset = reading.end


def discard(path: Path, *, damaged: bool) -> None:
    """Remove a file that is booked; one that could not be read to the last record is kept under another name."""
    if damaged:
        logger.error("%s has records that cannot be read; it is kept as %s", path, DAMAGED_SUFFIX)
        path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
    else:
        path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def keep_refused(path: Path, refused: list[Record]) -> None:
    """Append the rows to the file of those that PostgreSQL refused, durably."""
    target = path.with_suffix(REFUSED_SUFFIX)
    logger.critical("%d rows that PostgreSQL refuses are kept in %s", len(refused), target)
    descriptor = _locked(target)
    try:
        os.write(descriptor, b"".join(_line(record.body) for record in refused))
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    _sync_directory(path.parent)


def _locked(path: Path) -> int:
    """Open for appending, and lock: a file that another has drained and removed in between is made anew."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _line(body: bytes) -> bytes:
    return b"%08x %08x %s\n" % (len(body), zlib.crc32(body), body)


def _read(descriptor: int, offset: int) -> Reading:
    """Read whole lines from there. A last line without its end was never acknowledged, and is left out."""
    data = os.pread(descriptor, READ_BYTES_MAX, offset)
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == READ_BYTES_MAX:
        return Reading([], offset + len(data), damaged=1)
    found: list[Record] = []
    damaged = 0
    for line in whole.split(b"\n")[:-1]:
        try:
            found.append(_parse(line))
        except (ValueError, msgspec.DecodeError):
            damaged += 1
    return Reading(found, offset + len(whole), damaged)


def _parse(line: bytes) -> Record:
    length, checksum, body = line.split(b" ", 2)
    if len(body) != int(length, 16) or zlib.crc32(body) != int(checksum, 16):
        raise ValueError("not what was written")
    return Record.of(body)


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
