"""The fetcher over real loopback sockets: a site that serves, a canary that nobody may touch."""

import asyncio
import contextlib
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.data_urls import MeasuredImage, measure
from gateway.images.fetcher import Fetcher
from gateway.images.headers import ImageFormat

DEMO = ImageLimits(allow_loopback=True)
PUBLIC = "93.184.216.34"  # never dialled: see `dialled`

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def picture(image_format: ImageFormat = ImageFormat.PNG) -> bytes:
    file = BytesIO()
    Image.effect_noise((90, 70), 50).convert("RGB").save(file, image_format.value)
    return file.getvalue()


PNG = picture()


def ok(body: bytes, *headers: str, content_type: str = "image/png") -> bytes:
    head = [
        "HTTP/1.1 200 OK",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


@dataclass
class Site:
    """A web server that answers each path as it was told, and remembers what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    open_most: int = 0
    port: int = 0

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer((await reader.readuntil(b"\r\n\r\n")).decode(), writer)
        finally:
            self.open_now -= 1
            writer.close()

    async def _answer(self, request: str, writer: asyncio.StreamWriter) -> None:
        self.requests.append(request)
        answer = self.answers.get(request.split(" ")[1], b"HTTP/1.1 404 No\r\n\r\n")
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        else:
            await answer(writer)


@contextlib.asynccontextmanager
async def serving(site: Site, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site({"/": ok(PNG)})) as running:
        yield running


@pytest.fixture
async def canary() -> AsyncIterator[Site]:
    """A listener inside, with an image, so that only the walls keep it from being read."""
    async with serving(Site({"/": ok(PNG)})) as running:
        yield running


@pytest.fixture
async def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand at the socket: note each address on its way out, let none through but loopback's."""
    loop = asyncio.get_running_loop()
    connect, addresses = loop.sock_connect, []

    async def note(sock: object, address: tuple[str, int]) -> None:
        addresses.append(address[0])
        if not ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError
        await connect(sock, address)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "sock_connect", note)
    return addresses


class Names:
    """A name server: each answer is given once, the last one for ever."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def fetch(
    url: str | bytes,
    limits: ImageLimits = DEMO,
    *,
    resolve: Names | None = None,
    tls: ssl.SSLContext | None = None,
) -> MeasuredImage:
    async with Fetcher(limits, resolve=resolve, tls=tls) as fetcher:
        return await fetcher.fetch(url)


async def refusal(
    url: str | bytes,
    limits: ImageLimits = DEMO,
    *,
    resolve: Names | None = None,
    tls: ssl.SSLContext | None = None,
) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        await fetch(url, limits, resolve=resolve, tls=tls)
    return caught.value


def behind_walls(canary: Site) -> ImageLimits:
    """The limits of production, but for the port: it must not be what keeps the canary safe."""
    return ImageLimits(ports=frozenset({canary.port}))


# --- what is fetched


@pytest.mark.parametrize("image_format", list(ImageFormat))
async def test_an_image_is_fetched_measured_and_wrapped(
    site: Site, image_format: ImageFormat
) -> None:
    body = picture(image_format)
    site.answers["/picture"] = ok(body, content_type="application/octet-stream")

    image = await fetch(site.url("/picture"))

    assert (image.format, image.width_px, image.height_px) == (image_format, 90, 70)
    assert image == measure(image.data_url, DEMO)
    assert image.body_bytes == len(body)


async def test_a_body_without_a_length_is_read_to_its_end(site: Site) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (PNG[:7], PNG[7:]))
    site.answers["/chunked"] = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    site.answers["/closed"] = b"HTTP/1.0 200 OK\r\n\r\n" + PNG

    assert (await fetch(site.url("/chunked"))).body_bytes == len(PNG)
    assert (await fetch(site.url("/closed"))).body_bytes == len(PNG)


async def test_the_request_tells_nothing_about_us(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "")
    site.answers["/a?b=%2F"] = redirect("/", 307).replace(
        b"\r\n\r\n", b"\r\nset-cookie: a=b\r\n\r\n"
    )

    async with Fetcher(DEMO) as fetcher:
        await fetcher.fetch(site.url("/a?b=%2F"))
        await fetcher.fetch(site.url("/"))

    for request in site.requests:
        lines = dict(line.lower().split(": ", 1) for line in request.split("\r\n")[1:] if line)
        assert set(lines) <= {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert lines["accept-encoding"] == "identity"
        assert lines["connection"] == "close"
        assert lines["host"] == f"127.0.0.1:{site.port}"
    assert site.requests[0].startswith("GET /a?b=%2F HTTP/1.1\r\n")
    assert site.connections == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(site: Site, status: int) -> None:
    site.answers |= {
        "/3": redirect("2", status),
        "/2": redirect(site.url("/1"), status),
        "/1": redirect(f"//127.0.0.1:{site.port}", status),
    }

    assert (await fetch(site.url("/3"))).width_px == 90


async def test_a_name_is_resolved_once_and_kept_in_the_host_header(
    site: Site, dialled: list[str]
) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])

    await fetch(site.url(host="images.example"), resolve=names)

    assert names.asked == ["images.example"]
    assert dialled == ["127.0.0.1"]
    assert f"\r\nHost: images.example:{site.port}\r\n" in site.requests[0]


async def test_a_later_fetch_asks_the_name_server_again(site: Site, dialled: list[str]) -> None:
    async with Fetcher(DEMO, resolve=Names(["127.0.0.1"], ["10.0.0.1"])) as fetcher:
        await fetcher.fetch(site.url(host="images.example"))

        with pytest.raises(InvalidImage):
            await fetcher.fetch(site.url(host="images.example"))

    assert dialled == ["127.0.0.1"]


async def test_the_system_resolves_names_by_itself(site: Site) -> None:
    assert (await fetch(site.url(host="localhost").encode())).width_px == 90


async def test_an_address_that_does_not_answer_leaves_the_next_one(
    site: Site, dialled: list[str]
) -> None:
    names = Names(["::1", "127.0.0.1"])

    assert (await fetch(site.url(host="images.example"), resolve=names)).width_px == 90
    assert dialled == ["::1", "127.0.0.1"]


async def test_no_more_fetches_run_at_once_than_allowed(site: Site) -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(ok(PNG))

    site.answers["/"] = slowly

    async with Fetcher(replace(DEMO, fetches_at_once_max=2)) as fetcher:
        images = await asyncio.gather(*(fetcher.fetch(site.url()) for _ in range(6)))

    assert len(images) == 6
    assert site.open_most == 2


# --- what is never asked


async def test_the_canary_can_be_reached_where_the_walls_are_down(canary: Site) -> None:
    limits = replace(behind_walls(canary), allow_loopback=True)

    assert (await fetch(canary.url(), limits)).width_px == 90
    assert canary.connections == 1


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "0.0.0.0",
        "0",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f.1",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "ⓛocalhost",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "good@127.0.0.1",
        "example.com\\@127.0.0.1",
        "127.0.0.1\t",
        "%6cocalhost",
    ],
)
async def test_no_spelling_of_an_inner_host_is_asked(
    canary: Site, host: str, dialled: list[str]
) -> None:
    error = await refusal(canary.url(host=host), behind_walls(canary))

    assert error.code == "invalid_image_url"
    assert dialled == []
    assert canary.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
        "http://192.168.1.1/",
        "http://[fd00:ec2::254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[::ffff:169.254.169.254]/",
        "https://127.0.0.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://example.com:6379/",
        "",
        b"http://example.com/\xff",
    ],
)
async def test_a_refused_url_asks_neither_name_server_nor_host(
    url: str | bytes, dialled: list[str]
) -> None:
    names = Names(["127.0.0.1"])

    error = await refusal(url, ImageLimits(), resolve=names)

    assert error.code == "invalid_image_url"
    assert names.asked == []
    assert dialled == []


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", PUBLIC],
        [PUBLIC] * 20 + ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
        ["nonsense"],
        [],
        OSError("no such name"),
    ],
    ids=str,
)
async def test_a_name_with_one_bad_answer_is_refused_whole(
    canary: Site, dialled: list[str], answer: list[str] | Exception
) -> None:
    names = Names(answer)

    error = await refusal(canary.url(host="evil.example"), behind_walls(canary), resolve=names)

    assert error.code == "invalid_image_url"
    assert names.asked == ["evil.example"]
    assert dialled == []
    assert canary.connections == 0


async def test_a_name_that_changes_its_answer_is_asked_once_and_believed_once(
    canary: Site, dialled: list[str]
) -> None:
    names = Names([PUBLIC], ["127.0.0.1"])

    error = await refusal(canary.url(host="rebind.example"), behind_walls(canary), resolve=names)

    assert error.code == "failed_to_download_image"
    assert names.asked == ["rebind.example"]
    assert dialled == [PUBLIC]
    assert canary.connections == 0


async def test_a_name_server_that_hangs_is_not_waited_for(dialled: list[str]) -> None:
    async def hang(host: str) -> Sequence[str]:
        await asyncio.sleep(60)
        return [PUBLIC]

    started = time.monotonic()
    async with Fetcher(ImageLimits(resolve_timeout_s=0.05), resolve=hang) as fetcher:
        with pytest.raises(InvalidImage) as caught:
            await fetcher.fetch("http://slow.example/")

    assert caught.value.code == "invalid_image_url"
    assert time.monotonic() - started < 2
    assert dialled == []


async def test_all_refusals_read_the_same_and_tell_no_address(canary: Site) -> None:
    limits = behind_walls(canary)
    name = canary.url(host="evil.example")

    errors = [
        await refusal(canary.url(), limits),
        await refusal("gopher://x", limits),
        await refusal(name, limits, resolve=Names(["10.1.2.3"])),
        await refusal(name, limits, resolve=Names([])),
        await refusal(name, limits, resolve=Names(OSError("no such name"))),
    ]

    assert len({str(error.envelope()) for error in errors}) == 1
    assert "10.1.2.3" not in str(errors)


async def test_a_failed_connection_tells_no_address(dialled: list[str]) -> None:
    error = await refusal("http://a.example/", ImageLimits(), resolve=Names([PUBLIC]))

    assert dialled == [PUBLIC]
    assert error.code == "failed_to_download_image"
    assert PUBLIC not in str(error.envelope())


# --- redirects that are not followed


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://inner.example:{port}/",
        "http://good@127.0.0.1:{port}/",
        "http://0x7f.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
async def test_a_redirect_is_judged_like_the_first_url(
    site: Site, canary: Site, location: str, dialled: list[str]
) -> None:
    site.answers["/"] = redirect(location.format(port=canary.port))

    error = await refusal(site.url(), resolve=Names(["10.0.0.1"]))

    assert error.code == "failed_to_download_image"
    assert dialled == ["127.0.0.1"]
    assert canary.connections == 0


async def test_a_fourth_redirect_and_a_loop_are_given_up(site: Site) -> None:
    site.answers |= {f"/{n}": redirect(f"/{n - 1}") for n in range(1, 5)}
    site.answers["/loop"] = redirect("/loop")

    for path in ("/4", "/loop"):
        site.requests.clear()
        assert (await refusal(site.url(path))).code == "failed_to_download_image"
        assert len(site.requests) == 4


# --- what goes wrong on the way


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n" + PNG, "failed_to_download_image"),
        (b"HTTP/1.1 500 Oh\r\n\r\n" + PNG, "failed_to_download_image"),
        (b"HTTP/1.1 206 Part\r\n\r\n" + PNG, "failed_to_download_image"),
        (b"HTTP/1.1 204 None\r\n\r\n", "failed_to_download_image"),
        (b"HTTP/1.1 302 Where\r\n\r\n", "failed_to_download_image"),
        (b"not http at all\r\n\r\n", "failed_to_download_image"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n" + PNG, "failed_to_download_image"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 20_000 + b"\r\n\r\n" + PNG, "failed_to_download_image"),
        (b"", "failed_to_download_image"),
        (ok(PNG, "content-encoding: gzip"), "failed_to_download_image"),
        (ok(PNG, "content-encoding: br"), "failed_to_download_image"),
        (ok(b"<!doctype html>", content_type="text/html"), "failed_to_download_image"),
        (ok(b"<p>", content_type="text/html"), "failed_to_download_image"),
        (ok(PNG).replace(b"length: ", b"length: 9"), "failed_to_download_image"),
        (ok(PNG[:50]).replace(b"length: 50", b"length: 40"), "failed_to_download_image"),
        (ok(b"<svg/>" * 5, content_type="image/svg+xml"), "unsupported_image_media_type"),
        (ok(b"%PDF-1.7" * 5, content_type="application/pdf"), "unsupported_image_media_type"),
        (ok(b""), "empty_image_file"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "empty_image_file"),
        (ok(PNG[:30]), "image_parse_error"),
        (ok(PNG).replace(b"length: ", b"length: 0"), None),
        (ok(PNG, content_type="text/html"), None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_answers(site: Site, answer: bytes, code: str | None) -> None:
    site.answers["/"] = answer
    if code is None:
        assert (await fetch(site.url())).width_px == 90
    else:
        assert (await refusal(site.url())).code == code


async def test_a_declared_length_above_the_limit_is_enough_to_refuse(site: Site) -> None:
    site.answers["/"] = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + PNG

    assert (await refusal(site.url())).code == "image_file_too_large"


async def test_a_body_that_never_ends_is_cut_at_the_limit(site: Site) -> None:
    sent_bytes = 0

    async def endlessly(writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)
        while sent_bytes < 2**26:
            writer.write(bytes(2**16))
            sent_bytes += 2**16
            await writer.drain()

    site.answers["/"] = endlessly

    error = await refusal(site.url(), replace(DEMO, file_bytes_max=2**16))

    assert error.code == "image_file_too_large"
    assert sent_bytes < 2**25


async def test_a_body_that_is_no_image_is_cut_at_its_first_bytes(site: Site) -> None:
    async def endlessly(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<!doctype html>")
        await writer.drain()
        await asyncio.sleep(60)

    site.answers["/"] = endlessly

    error = await refusal(site.url())

    assert error.code == "failed_to_download_image"
    assert "a page" in error.message


@pytest.mark.parametrize("silent", [b"", b"HTTP/1.1 200 OK\r\n", ok(PNG)[:200]])
async def test_a_server_that_drips_is_left_in_time(site: Site, silent: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(silent)
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    site.answers["/"] = drip
    started = time.monotonic()

    error = await refusal(site.url(), replace(DEMO, fetch_timeout_s=0.2))

    assert error.code == "failed_to_download_image"
    assert time.monotonic() - started < 2


async def test_a_fetch_that_is_cancelled_gives_its_slot_back(site: Site) -> None:
    async def hang(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    site.answers["/hang"] = hang
    async with Fetcher(replace(DEMO, fetches_at_once_max=1)) as fetcher:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await fetcher.fetch(site.url("/hang"))

        assert (await fetcher.fetch(site.url())).width_px == 90


# --- TLS


@dataclass(frozen=True)
class Certificate:
    """Signed by itself, for one name; each side's view of it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """Certify images.example."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "images.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("images.example")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "images.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Certificate(server, ssl.create_default_context(cafile=file))


async def test_tls_is_checked_against_the_name_and_not_the_address(
    certificate: Certificate,
) -> None:
    asked: list[str | None] = []
    certificate.server.sni_callback = lambda sock, name, context: asked.append(name)
    names = Names(["127.0.0.1"])

    async with serving(Site({"/": ok(PNG)}), certificate.server) as site:
        url = site.url(host="images.example", scheme="https")
        image = await fetch(url, resolve=names, tls=certificate.client)

    assert image.width_px == 90
    assert asked == ["images.example"]
    assert f"\r\nHost: images.example:{site.port}\r\n" in site.requests[0]


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
async def test_a_certificate_for_another_name_is_refused(
    certificate: Certificate, host: str
) -> None:
    async with serving(Site({"/": ok(PNG)}), certificate.server) as site:
        url = site.url(host=host, scheme="https")

        error = await refusal(url, resolve=Names(["127.0.0.1"]), tls=certificate.client)

    assert error.code == "failed_to_download_image"
    assert site.requests == []


async def test_an_unknown_authority_is_refused(certificate: Certificate) -> None:
    async with serving(Site({"/": ok(PNG)}), certificate.server) as site:
        url = site.url(host="images.example", scheme="https")

        error = await refusal(url, resolve=Names(["127.0.0.1"]))

    assert error.code == "failed_to_download_image"
    assert site.requests == []


async def test_a_redirect_from_https_to_http_is_refused(
    certificate: Certificate, canary: Site
) -> None:
    answers: dict[str, Answer] = {"/": redirect(canary.url())}

    async with serving(Site(answers), certificate.server) as site:
        url = site.url(host="images.example", scheme="https")

        error = await refusal(url, resolve=Names(["127.0.0.1"]), tls=certificate.client)

    assert error.code == "failed_to_download_image"
    assert len(site.requests) == 1
    assert canary.connections == 0
