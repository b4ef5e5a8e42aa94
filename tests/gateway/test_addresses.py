"""The allow-list and the URL parser. No name is resolved here, and nothing is dialled."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from gateway.images import ImageLimits
from gateway.images.addresses import AddressRefused, may_dial, parse_url
from tenants.addresses import is_public

LIMITS = ImageLimits()
DEMO = ImageLimits(allow_loopback=True)

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "203.0.114.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2400:cb00::1",
    "2606:4700::1111",
    "2a00:1450::1",
    "3ffe::1",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.0.0.1",
    "0.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.100.100.200",  # a cloud's metadata
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",  # a cloud's platform services
    "169.254.0.0",
    "169.254.169.254",  # the clouds' metadata
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.192",  # a cloud's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe",  # NAT64
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "1fff:ffff::1",
    "2001::1",  # Teredo
    "2001:10::1",
    "2001:1ff::1",
    "2001:db8::1",
    "2002:7f00:1::1",  # 6to4
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
]
# Each of these means an inner host to some resolver or parser.
INNER_HOSTS = [
    "2130706433",
    "0177.0.0.1",
    "0x7f.1",
    "0x7f000001",
    "0X7F.0.0.1",
    "127.1",
    "127.0.1",
    "0",
    "00.0.0.0",
    "1.2.3.4.5",
    "example.1",
    "example.0x",
    "%31%32%37.0.0.1",
    "127%2e0.0.1",
    "[::1",
    "::1",
    "[::1]evil.example",
    "[fe80::1%25eth0]",
    "[v1.a]",
    "[]",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_dialled_on_the_webs_ports(address: str) -> None:
    assert is_public(ip_address(address))
    assert may_dial(address, 443, LIMITS)
    assert may_dial(address, 80, LIMITS)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_may_not_be_dialled(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not may_dial(address, 443, LIMITS)


@given(st.ip_addresses())
def test_the_list_is_never_wider_than_pythons(ip: object) -> None:
    address = ip_address(str(ip))

    assert address.is_global or not is_public(address)


@pytest.mark.parametrize("port", [0, 22, 25, 53, 6379, 8080, 65_535])
def test_other_ports_may_not_be_dialled(port: int) -> None:
    assert not may_dial("93.184.216.34", port, LIMITS)
    assert not may_dial("93.184.216.34", port, DEMO)


@pytest.mark.parametrize("address", ["", "localhost", "127.1", "0x7f.1", "93.184.216.34 "])
def test_what_is_not_an_address_may_not_be_dialled(address: str) -> None:
    assert not may_dial(address, 80, DEMO)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_a_switch_and_brings_every_port(address: str) -> None:
    assert may_dial(address, 8000, DEMO)
    assert not may_dial(address, 80, LIMITS)


@pytest.mark.parametrize(
    "address", sorted(set(NOT_PUBLIC) - {"127.0.0.1", "127.255.255.255", "::1"})
)
def test_the_loopback_switch_opens_nothing_else(address: str) -> None:
    assert not may_dial(address, 80, DEMO)


# --- URLs


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("HTTPS://Example.COM:443/A.png", "example.com", 443, "/A.png"),
        ("https://example.com./a", "example.com", 443, "/a"),
        ("https://example.com/?", "example.com", 443, "/"),
        ("https://example.com?w=1#top", "example.com", 443, "/?w=1"),
        ("https://my_bucket.example.com/x", "my_bucket.example.com", 443, "/x"),
        ("https://例子.台灣/圖.jpg", "xn--fsqu00a.xn--kpry57d", 443, "/%E5%9C%96.jpg"),
        ("https://example.com/a%2Fb%20c?s=x%2F+y", "example.com", 443, "/a%2Fb%20c?s=x%2F+y"),
        ("https://example.com/a/../b//c", "example.com", 443, "/a/../b//c"),
        ("http://93.184.216.34/", "93.184.216.34", 80, "/"),
        ("http://[2606:4700::1111]/", "2606:4700::1111", 80, "/"),
    ],
)
def test_a_good_url_keeps_its_target(text: str, host: str, port: int, target: str) -> None:
    url = parse_url(text, LIMITS)

    assert (url.raw_host, url.port, url.raw_path_qs) == (host, port, target)


@pytest.mark.parametrize("host", INNER_HOSTS)
@pytest.mark.parametrize("limits", [LIMITS, DEMO])
def test_an_address_in_disguise_is_refused(host: str, limits: ImageLimits) -> None:
    with pytest.raises(AddressRefused):
        parse_url(f"http://{host}/", limits)


@pytest.mark.parametrize("host", ["127.0.0.1.", "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.0.0.1"])
def test_an_address_in_other_letters_is_judged_as_the_address(host: str) -> None:
    assert parse_url(f"http://{host}/", LIMITS).raw_host == "127.0.0.1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "example.com",
        "//example.com/",
        "http:example.com",
        "http:/example.com",
        "http:///example.com",
        "http://",
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com/a",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://good@127.0.0.1/",
        "http://good:pass@example.com/",
        "http://@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http:\\\\example.com",
        " http://example.com/",
        "http://example.com/a b",
        "http://example.com/\t",
        "http://example.com/\r\nHost: inner",
        "http://example.com/\x00",
        "http://exam\u200bple.com/",
        "http://example.com/\u202e",
        "http://example.com/\ud800",
        "http://exam\u00adple.com/",
        "http://example.com:22/",
        "http://example.com:6379/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:８０/",
        "http://example.com:-80/",
        "http://example..com/",
        "http://.example.com/",
        "http://-example.com/",
        "http://example!.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 127 + "com/",
        "http://例子-.台灣/",
        "http://example.com/" + "a" * 2048,
    ],
)
def test_a_bad_url_is_refused(text: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url(text, LIMITS)


@pytest.mark.parametrize(("port", "good"), [(8000, True), (0, False), (65_536, False)])
def test_the_loopback_switch_lets_any_real_port_be_named(port: int, good: bool) -> None:
    text = f"http://localhost:{port}/"
    if good:
        assert parse_url(text, DEMO).port == port
    else:
        with pytest.raises(AddressRefused):
            parse_url(text, DEMO)


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://[", "http://a"]))
def test_any_text_is_parsed_or_refused(text: str, start: str) -> None:
    try:
        url = parse_url(start + text, LIMITS)
    except AddressRefused:
        return
    assert url.scheme in {"http", "https"}
    assert url.port in {80, 443}
    assert (str(url) + (url.raw_host or "")).isascii()
    assert url.user is None
    assert url.password is None


# --- redirects


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/c.png", "https://a.example/c.png"),
        ("c.png?d", "https://a.example/b/c.png?d"),
        ("//d.example/e", "https://d.example/e"),
        ("https://d.example", "https://d.example/"),
        ("", "https://a.example/b/x"),
    ],
)
def test_a_redirect_may_be_relative(location: str, expected: str) -> None:
    origin = parse_url("https://a.example/b/x", LIMITS)

    assert str(parse_url(location, LIMITS, origin=origin)) == expected


@pytest.mark.parametrize(
    "location",
    [
        "http://a.example/",
        "ftp://a.example/",
        "data:image/png;base64,AAAA",
        "//user@a.example/",
        "//a.example:22/",
        "https://[",
        "/a\\b",
        "ht\ntp://a.example/",
        "/" + "a" * 2040,
    ],
)
def test_a_redirect_is_judged_like_a_first_url_and_never_leaves_https(location: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url(location, LIMITS, origin=URL("https://a.example/"))


def test_a_redirect_may_rise_from_http_to_https() -> None:
    origin = parse_url("http://a.example/", LIMITS)

    assert parse_url("https://a.example/", LIMITS, origin=origin).scheme == "https"
