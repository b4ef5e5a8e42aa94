"""Lifting images out of a body changes nothing but the time it takes to read it."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.payloads import STRING_BYTES_MIN, Lifted
from gateway.protocol import ChatRequest, parse_chat

IMAGE = "data:image/png;base64," + base64.b64encode(bytes(STRING_BYTES_MIN)).decode()


def image(url: str = IMAGE, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def body(*parts: dict[str, Any], **fields: Any) -> bytes:
    request = {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **fields}
    return json.dumps(request, separators=(",", ":")).encode()


def parse(given: bytes) -> ChatRequest:
    return parse_chat(given, messages_max=100, images_max=100)


def forwarded(given: bytes) -> Any:
    """Return what the backend would read, as JSON."""
    body = parse(given).upstream_body(model="m", max_tokens=9, running_usage=False)
    return json.loads(b"".join(body))


def test_a_long_image_is_lifted_and_still_found() -> None:
    lifted = Lifted(body(image()))

    assert len(lifted.document) < 300
    assert bytes(parse(body(image())).images[0].url).decode() == IMAGE


@pytest.mark.parametrize(
    "parts",
    [
        [image(), text("between"), image(IMAGE.upper()), image(detail="low")],
        [text("look: " + IMAGE), image()],
        [text(f'a quote " and {IMAGE}'), image()],
        [{"type": "image_url", "image_url": IMAGE}],
        [image("data:image/png;base64,short"), image(IMAGE[:-4] + "\\")],
    ],
)
def test_the_backend_reads_what_the_client_sent(parts: list[dict[str, Any]]) -> None:
    sent = body(*parts)

    assert forwarded(sent) == {**json.loads(sent), "max_tokens": 9}


def test_a_text_that_holds_an_image_is_counted_as_the_text_it_is() -> None:
    written = "look: " + IMAGE

    assert parse(body(text(written), image())).prompt[0].parts[0] == written


def test_escaped_slashes_are_an_image_all_the_same() -> None:
    url = IMAGE.replace("AAAA", "/AAA", 1)
    sent = body(image(url)).replace(b"/", b"\\/")

    assert bytes(parse(sent).images[0].url).decode() == url


@given(
    st.text(max_size=60), st.text(max_size=60), st.sampled_from([IMAGE, IMAGE + '"', "x;base64,"])
)
def test_whatever_stands_around_it_the_body_survives(before: str, after: str, url: str) -> None:
    sent = body(text(before + url), image(IMAGE), text(after))

    assert forwarded(sent)["messages"] == json.loads(sent)["messages"]


@given(st.binary(max_size=200), st.integers(0, 3))
def test_what_is_lifted_can_be_put_back(noise: bytes, count: int) -> None:
    sent = (noise + b'"' + IMAGE.encode() + b'"') * count + noise
    lifted = Lifted(sent)

    assert b"".join(lifted.put_back(lifted.document)) == sent
