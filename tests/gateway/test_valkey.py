"""The one connection to Valkey: how commands travel, and what callers learn when it goes wrong."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hiredis
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.conf import settings

from demo.valkey import Valkey as Server
from gateway.valkey import Address, Script, Valkey, ValkeyAway

ECHO = Script("return ARGV[1]")
TIMEOUT_S = 0.1

Reply = bytes | None  # None: say nothing


class FakeServer:
    """Speaks just enough of the protocol to be looked at, or to misbehave, over a real socket."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.reads: list[int] = []  # how many commands came with each
        self.connections = 0
        self.reply: Callable[[list[bytes]], Reply] = lambda command: b"+OK\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(2**20):
                parser.feed(data)
                self.reads.append(0)
                while (command := parser.gets()) is not False:
                    self.reads[-1] += 1
                    self.commands.append(command)
                    writer.write(self.reply(command) or b"")
        except ConnectionError:
            pass
        finally:
            writer.close()

    @property
    def words(self) -> list[bytes]:
        return [b" ".join(command[:3]) for command in self.commands]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def listening(
    stack: AsyncExitStack, server: FakeServer, tls: ssl.SSLContext | None = None
) -> int:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    stack.callback(listener.close)
    return int(listener.sockets[0].getsockname()[1])


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def to_fake(stack: AsyncExitStack, server: FakeServer) -> Valkey:
    """A connection to the fake server, which has just been greeted."""
    valkey = await connected(stack, f"redis://127.0.0.1:{await listening(stack, server)}")
    server.commands.clear()
    server.reads.clear()
    return valkey


@pytest.fixture
async def valkey(stack: AsyncExitStack) -> Valkey:
    return await connected(stack, settings.REDIS_URL)


async def connected(stack: AsyncExitStack, url: str, *, queue_max: int = 1000) -> Valkey:
    valkey = Valkey(url, scripts=(ECHO,), timeout_s=TIMEOUT_S, queue_max=queue_max)
    await valkey.start()
    stack.push_async_callback(valkey.stop)
    return valkey


async def eventually(is_so: Callable[[], bool], within_s: float = 5) -> None:
    for _ in range(int(within_s * 100)):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


# ------------------------------------------------------------------- commands


async def test_commands_are_answered_in_order(valkey: Valkey) -> None:
    texts = [f"{number}" * number for number in range(200)]

    answers = await asyncio.gather(*(valkey.evaluate(ECHO, (0, text)) for text in texts))

    assert answers == [text.encode() for text in texts]


async def test_the_commands_of_one_turn_go_out_in_one_write(
    to_fake: Valkey, server: FakeServer
) -> None:
    await asyncio.gather(*(to_fake.command("GET", f"{number}") for number in range(32)))

    assert server.reads == [32]


async def test_what_nobody_waits_for_travels_with_the_next_command(
    to_fake: Valkey, server: FakeServer
) -> None:
    to_fake.evaluate_unheard(ECHO, (0, "x"))
    await asyncio.sleep(0)
    await to_fake.command("GET", "a")

    assert server.reads == [2]


async def test_what_nobody_waits_for_does_not_wait_long(
    to_fake: Valkey, server: FakeServer
) -> None:
    to_fake.evaluate_unheard(ECHO, (0, "x"))

    await eventually(lambda: server.reads == [1])


async def test_a_script_is_called_by_its_digest(to_fake: Valkey, server: FakeServer) -> None:
    await to_fake.evaluate(ECHO, (0, "x"))

    assert server.commands == [[b"EVALSHA", ECHO.digest, b"0", b"x"]]


async def test_a_script_that_was_forgotten_is_sent_whole(valkey: Valkey) -> None:
    await valkey.command("SCRIPT", "FLUSH")

    assert await valkey.evaluate(ECHO, (0, "x")) == b"x"


async def test_a_command_that_is_refused_says_why_and_the_next_one_works(valkey: Valkey) -> None:
    with pytest.raises(ValkeyAway, match="unknown command"):
        await valkey.command("NONSENSE")

    assert await valkey.command("PING") == b"PONG"


async def test_what_was_sent_unheard_has_arrived_when_it_stops(
    stack: AsyncExitStack, valkey: Valkey
) -> None:
    store = Script("redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)")
    key = f"unheard-{time.time_ns()}"
    valkey.evaluate_unheard(store, (1, key, "arrived"))

    await valkey.stop()

    other = await connected(stack, settings.REDIS_URL)
    assert await other.command("GET", key) == b"arrived"


async def test_a_caller_that_gives_up_disturbs_nobody(to_fake: Valkey, server: FakeServer) -> None:
    abandoned, other = to_fake.command("GET", "a"), to_fake.command("GET", "b")

    abandoned.cancel()

    assert await other == b"OK"


# ------------------------------------------------------------------- trouble


async def test_silence_is_noticed_in_time_and_then_at_once(
    to_fake: Valkey, server: FakeServer
) -> None:
    server.reply = lambda command: None
    began_at = time.monotonic()

    with pytest.raises(ValkeyAway, match="no answer within 100 ms"):
        await to_fake.command("GET", "a")
    assert TIMEOUT_S <= time.monotonic() - began_at < 5 * TIMEOUT_S

    with pytest.raises(ValkeyAway, match="no connection"):
        to_fake.command("GET", "b")


async def test_everybody_who_waits_learns_of_it(to_fake: Valkey, server: FakeServer) -> None:
    server.reply = lambda command: None

    waiting = [to_fake.command("GET", "a") for _ in range(50)]
    answers = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(answer, ValkeyAway) for answer in answers)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_busy_process_does_not_blame_valkey(run: Callable[..., None]) -> None:
    """The loop that the door runs on looks at its timers before its sockets."""

    async def be_busy() -> None:
        async with AsyncExitStack() as stack:
            valkey = await connected(stack, settings.REDIS_URL)
            for _ in range(3):
                waiting = valkey.command("PING")
                await asyncio.sleep(0.02)  # it is sent
                later = valkey.command("PING")
                time.sleep(2 * TIMEOUT_S)  # noqa: ASYNC251

                assert [await waiting, await later] == [b"PONG", b"PONG"]

    run(be_busy())


async def test_nonsense_is_no_reply(to_fake: Valkey, server: FakeServer) -> None:
    server.reply = lambda command: b"HTTP/1.1 400 Bad Request\r\n\r\n"

    with pytest.raises(ValkeyAway, match="does not speak"):
        await to_fake.command("GET", "a")


async def test_a_reply_that_nobody_asked_for_is_nonsense(
    to_fake: Valkey, server: FakeServer
) -> None:
    server.reply = lambda command: b"+OK\r\n+OK\r\n"

    assert await to_fake.command("GET", "a") == b"OK"

    await eventually(lambda: not to_fake.is_up)


async def test_more_than_may_wait_is_refused_at_once(
    stack: AsyncExitStack, server: FakeServer
) -> None:
    port = await listening(stack, server)
    valkey = await connected(stack, f"redis://127.0.0.1:{port}", queue_max=3)
    waiting = [valkey.command("GET", "a") for _ in range(3)]

    with pytest.raises(ValkeyAway, match="too many"):
        valkey.command("GET", "b")

    assert await asyncio.gather(*waiting) == [b"OK"] * 3


async def test_a_lost_connection_is_made_anew(to_fake: Valkey, server: FakeServer) -> None:
    server.reply = lambda command: None
    with pytest.raises(ValkeyAway):
        await to_fake.command("GET", "a")

    server.reply = lambda command: b"+OK\r\n"
    await eventually(lambda: to_fake.is_up)

    assert await to_fake.command("GET", "b") == b"OK"
    assert server.connections == 2


async def test_one_that_does_not_answer_the_greeting_is_not_used(
    stack: AsyncExitStack, server: FakeServer
) -> None:
    server.reply = lambda command: None
    valkey = await connected(stack, f"redis://127.0.0.1:{await listening(stack, server)}")

    await eventually(lambda: server.connections >= 3)

    assert not valkey.is_up
    with pytest.raises(ValkeyAway):
        valkey.command("PING")


async def test_it_starts_without_a_server_and_finds_it_later(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    with Server(tmp_path) as real:
        url = real.url
    valkey = await connected(stack, url)
    assert not valkey.is_up

    with Server(tmp_path):
        await eventually(lambda: valkey.is_up)
        assert await valkey.command("PING") == b"PONG"


# ------------------------------------------------------------------- addresses


async def test_it_logs_in_selects_its_database_and_leaves_the_scripts(
    stack: AsyncExitStack, server: FakeServer
) -> None:
    port = await listening(stack, server)

    await connected(stack, f"redis://tessera:s%40crt@127.0.0.1:{port}/3")

    assert server.words[:3] == [b"AUTH tessera s@crt", b"SELECT 3", b"SCRIPT LOAD " + ECHO.source]


async def test_a_refused_login_is_no_connection(stack: AsyncExitStack, server: FakeServer) -> None:
    server.reply = lambda command: (
        b"-WRONGPASS invalid\r\n" if command[0] == b"AUTH" else b"+OK\r\n"
    )

    valkey = await connected(stack, f"redis://:wrong@127.0.0.1:{await listening(stack, server)}")

    assert not valkey.is_up
    assert server.words[0] == b"AUTH wrong"


async def test_tls_is_verified(stack: AsyncExitStack, server: FakeServer, tmp_path: Path) -> None:
    context, certificate = certified(tmp_path)
    port = await listening(stack, server, tls=context)

    trusting = await connected(stack, f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
    strict = await connected(stack, f"rediss://localhost:{port}")

    assert await trusting.command("PING") == b"OK"
    assert not strict.is_up


def certified(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a server's TLS context for localhost, and the file of its self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(hours=1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    return context, directory / "certificate.pem"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://valkey", ("valkey", 6379, "", 0, (), False)),
        ("redis://:p%2Fw@valkey:6380/2", ("valkey", 6380, "", 2, ("p/w",), False)),
        ("rediss://me:pw@valkey/1", ("valkey", 6379, "", 1, ("me", "pw"), True)),
        ("redis://valkey/?db=4", ("valkey", 6379, "", 4, (), False)),
        ("unix:///run/a%20b.sock?db=5", ("localhost", 6379, "/run/a b.sock", 5, (), False)),
        ("unix://me:pw@/run/x?db=1", ("localhost", 6379, "/run/x", 1, ("me", "pw"), False)),
        ("unix:///run/x?password=pw", ("localhost", 6379, "/run/x", 0, ("pw",), False)),
    ],
)
def test_addresses_are_read_as_other_clients_do(url: str, expected: tuple[Any, ...]) -> None:
    address = Address.parse(url)

    assert (address.host, address.port, address.path, address.database) == expected[:4]
    assert (address.login, address.tls) == expected[4:]
    assert "pw" not in f"{address} {address!r}"


@pytest.mark.parametrize("url", ["http://valkey", "valkey:6379", "", "redis://valkey/one"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis://|int"):
        Address.parse(url)
