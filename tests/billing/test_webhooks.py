"""A webhook's address is the tenant's and the network is ours: only public addresses, and no way around it."""

import socket
from typing import Any

import pytest
from django.utils.timezone import now

from billing.notifications.webhooks import Message, WebhookFailed, check_url, post
from tests.receiver import receiving

SECRET = "whsec_c2VjcmV0"


def send(url: str, *, allow_private: bool = False) -> None:
    message = Message("alert_1", b"{}", now())
    post(url, message, secret=SECRET, allow_private=allow_private)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "0.0.0.0"),
        *("10.0.0.8", "169.254.169.254", "192.168.1.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]"),
    ],
)
def test_an_address_inside_is_never_dialled(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dial(*_: Any, **__: Any) -> None:
        raise AssertionError("dialled")

    monkeypatch.setattr(socket, "create_connection", dial)

    with pytest.raises(WebhookFailed, match="not one that we send to"):
        send(f"https://{host}/hook")


def test_a_name_with_one_private_address_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, 1, 6, "", (ip, 0)) for ip in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)

    with pytest.raises(WebhookFailed, match="not one that we send to"):
        send("https://rebound.example/")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://user:password@example.com/",
        "https://example.com/#part",
        "https://exa mple.com/",
        "https:///path",
        "example.com",
        "",
        f"https://example.com/{'x' * 500}",
    ],
)
def test_what_is_no_webhooks_address_is_refused_before_anything(url: str) -> None:
    with pytest.raises(WebhookFailed):
        check_url(url, allow_private=False)


def test_the_name_is_kept_though_the_address_is_dialled() -> None:
    with receiving() as receiver:
        send(receiver.url.replace("127.0.0.1", "localhost"), allow_private=True)

    ((headers, _),) = receiver.received
    assert headers["host"].startswith("localhost:")
    assert headers["content-type"] == "application/json"


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")

    with receiving() as receiver:
        send(receiver.url, allow_private=True)

    assert len(receiver.received) == 1


def test_a_host_that_does_not_answer_is_named_by_kind_only() -> None:
    with pytest.raises(WebhookFailed, match=r"\ANo connection: ConnectError\Z"):
        send("http://127.0.0.1:1/", allow_private=True)
