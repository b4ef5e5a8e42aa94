"""The demo backend as its clients meet it: over real sockets, with its real models."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from demo.text_model import missing_cpu_flags, why_not_here
from tests.demo.conftest import (
    SIGN,
    Json,
    Server,
    comes_true,
    content_of,
    data_url,
    demo_backend,
    encoded,
    question,
    user,
)

pytestmark = pytest.mark.xdist_group("demo_backend")

ENGLISH = "What is in this image?"
CHINESE = "這張圖裡面有什麼?"
SIGN_URL = data_url(SIGN.read_bytes())
TEXT_MODEL = "smollm2-135m-instruct"
needs_text_model = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def sign_as(kind: str, **options: Any) -> str:
    with Image.open(SIGN) as sign:
        return data_url(encoded(sign.convert("RGB"), kind, **options), f"image/{kind.lower()}")


def plain(name: str, size_px: tuple[int, int] = (64, 64)) -> str:
    return data_url(encoded(Image.new("RGB", size_px, name)))


def events(server: Server, body: Json) -> Iterator[Json]:
    """Yield the chunks of a stream, and check how it ends."""
    with server.client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream": True}
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    yield from map(json.loads, lines[:-1])


def told(chunks: list[Json]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_chinese_and_english_text_is_read_in_every_format(server: Server, kind: str) -> None:
    answer = content_of(server.ask(question(user(ENGLISH, sign_as(kind)))))

    text = answer.replace(" ", "")  # where a space stands between the two scripts is a guess
    for line in (
        "台北車站地下街",
        "TaipeiMainStationUndergroundMall",
        "營業時間10:00-21:30",
        "出口Y12請往右轉",
        "ExitY12,turnright",
        "請勿吸菸",
        "Nosmoking",
    ):
        assert line in text
    assert f"{kind} image of 960 × 640 pixels" in answer
    assert "dark blue" in answer


def test_an_image_that_lies_on_its_side_is_read_by_its_exif(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(SIGN) as sign:
        lying = sign.convert("RGB").rotate(90, expand=True)

    answer = content_of(server.ask(question(user(ENGLISH, data_url(encoded(lying, exif=exif))))))

    assert "960 × 640" in answer
    assert "Taipei Main Station" in answer


def test_the_same_question_gets_the_same_answer(server: Server) -> None:
    first, second = (server.ask(question(user(ENGLISH, SIGN_URL))) for _ in range(2))

    assert first["id"] != second["id"]
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]


@pytest.mark.parametrize(
    ("text", "opening"),
    [(ENGLISH, "This is a PNG image"), (CHINESE, "這是一張 960 × 640 像素的 PNG")],
)
def test_the_answer_is_in_the_language_of_the_question(
    server: Server, text: str, opening: str
) -> None:
    assert content_of(server.ask(question(user(text, SIGN_URL)))).startswith(opening)


def test_several_images_are_numbered_in_their_order(server: Server) -> None:
    answer = content_of(server.ask(question(user(ENGLISH, plain("red"), plain("blue")))))

    first, second = answer.index("Image 1:"), answer.index("Image 2:")
    assert "red (100%)" in answer[first:second]
    assert "blue (100%)" in answer[second:]


def test_images_of_earlier_turns_are_read_again(server: Server) -> None:
    turns = [user(CHINESE, plain("red")), {"role": "assistant", "content": "一張圖"}]

    answer = server.ask(question(*turns, user("請用古詩詞來描述這個場景")))

    assert content_of(answer).startswith("我只會讀圖片，所以再讀一次。")
    assert "紅色（100%）" in content_of(answer)
    assert answer["usage"]["prompt_tokens"] > 1601


@pytest.mark.parametrize(
    ("text", "opening"), [("Hello", "I only read images"), ("你好", "我只會讀圖片")]
)
def test_without_an_image_it_says_what_it_can_do(server: Server, text: str, opening: str) -> None:
    answer = server.ask(question({"role": "user", "content": text}))

    assert content_of(answer).startswith(opening)


def test_the_prompt_of_the_document_counts_as_in_the_document(server: Server) -> None:
    answer = server.ask(question(user(CHINESE, plain("white", (600, 600)))))

    assert answer["usage"]["prompt_tokens"] == 6424


def test_an_answer_has_the_whole_shape(server: Server) -> None:
    answer = server.ask(question(user(ENGLISH, SIGN_URL)))
    usage = answer.pop("usage")
    choice = answer.pop("choices")[0]

    assert answer.pop("id").startswith("chatcmpl-")
    assert abs(answer.pop("created") - time.time()) < 60
    assert answer == {
        "object": "chat.completion",
        "model": "image-reader",
        "system_fingerprint": None,
    }
    assert choice.pop("message").keys() == {"role", "content", "tool_calls"}
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "stop"}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] is usage["completion_tokens_details"] is None


@pytest.mark.parametrize("choices", [1, 3])
def test_a_stream_tells_what_the_whole_answer_says(server: Server, choices: int) -> None:
    body = question(user(CHINESE, SIGN_URL), n=choices)
    whole = server.ask(body)

    *chunks, last = events(server, body | {"stream_options": {"include_usage": True}})

    for choice in whole["choices"]:
        mine = [chunk for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert told(mine) == choice["message"]["content"]
        assert mine[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_reports_usage_only_when_asked(server: Server) -> None:
    assert not any("usage" in chunk for chunk in events(server, question(user(ENGLISH, SIGN_URL))))


def test_running_usage_is_right_in_each_chunk(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    chunks = list(events(server, question(user(ENGLISH, SIGN_URL), n=2, stream_options=options)))

    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[:2] == [0, 0]
    assert counts == sorted(counts)
    assert (
        counts[-1]
        == counts[-2]
        == 2 * server.ask(question(user(ENGLISH, SIGN_URL)))["usage"]["completion_tokens"]
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_answer(server: Server, name: str) -> None:
    whole = server.ask(question(user(ENGLISH, SIGN_URL)))

    cut = server.ask(question(user(ENGLISH, SIGN_URL)) | {name: 5})

    assert cut["usage"]["completion_tokens"] == 5
    assert cut["choices"][0]["finish_reason"] == "length"
    assert content_of(whole).startswith(content_of(cut))


def test_a_stop_ends_the_answer_before_it(server: Server) -> None:
    answer = server.ask(question(user(ENGLISH, SIGN_URL), stop=["pixels", "colours"]))

    assert content_of(answer) == "This is a PNG image of 960 × 640 "
    assert answer["choices"][0]["finish_reason"] == "stop"


BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "not json": (b"{", "invalid_json"),
    "not utf-8": (b'{"model":"\xff"}', "invalid_json"),
    "deep": (b'{"model":"m","x":' + b"[" * 100_000, "invalid_json"),
    "a list": (b"[]", "invalid_value"),
    "no model": (b'{"messages":[{"role":"user","content":"x"}]}', "invalid_value"),
}
BAD_CHATS: dict[str, tuple[Json, str]] = {
    "no messages": ({}, "invalid_value"),
    "empty messages": ({"messages": []}, "invalid_value"),
    "role": ({"messages": [{"role": "emperor", "content": "x"}]}, "invalid_value"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "invalid_value"),
    "max_tokens 0": (question(user("x"), max_tokens=0), "invalid_value"),
    "max_tokens text": (question(user("x"), max_tokens="5"), "invalid_value"),
    "n": (question(user("x"), n=9), "invalid_value"),
    "stops": (question(user("x"), stop=["a"] * 5), "invalid_value"),
    "stream": (question(user("x"), stream="yes"), "invalid_value"),
    "tools": (question(user("x"), tools=[1] * 129), "invalid_value"),
    "tool call": (question({"role": "assistant", "tool_calls": [{}]}), "invalid_value"),
    "http url": (question(user("x", "http://127.0.0.1/a.png")), "invalid_image_url"),
    "not a url": (question(user("x", "a.png")), "invalid_image_url"),
    "not base64": (question(user("x", "data:image/png,abc")), "invalid_base64_image"),
    "bad base64": (question(user("x", "data:;base64,@@@@")), "invalid_base64_image"),
    "cut base64": (question(user("x", SIGN_URL[:-3])), "invalid_base64_image"),
    "empty image": (question(user("x", "data:image/png;base64,")), "empty_image_file"),
    "not an image": (question(user("x", data_url(b"hello"))), "unsupported_image_media_type"),
    "many images": (question(user("x", *[SIGN_URL] * 17)), "too_many_images"),
}
BAD = BAD_BODIES | {
    name: (json.dumps({"model": "image-reader"} | body).encode(), code)
    for name, (body, code) in BAD_CHATS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_a_400_with_its_code(server: Server, name: str) -> None:
    body, code = BAD[name]

    answer = server.client.post("/v1/chat/completions", content=body)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def test_the_parameter_at_fault_is_named(server: Server) -> None:
    body = question({"role": "emperor", "content": "x"})

    error = server.client.post("/v1/chat/completions", json=body).json()["error"]

    assert error["param"] == "messages[0].role"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v1/models/gpt-4o", 404),
        ("GET", "/v1/chat/completions", 405),
    ],
)
def test_a_path_that_is_not_there_has_an_error_in_the_envelope(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = server.client.request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_a_404(server: Server) -> None:
    answer = server.client.post("/v1/chat/completions", json=question(user("x"), model="gpt-4o"))

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_body_over_the_cap_is_a_413(server: Server) -> None:
    answer = server.client.post("/v1/chat/completions", content=b" " * (64 * 2**20 + 1))

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_the_sample_is_served(server: Server) -> None:
    answer = server.client.get("/demo/sign.png")

    assert answer.headers["content-type"] == "image/png"
    assert answer.content == SIGN.read_bytes()


def test_a_client_that_leaves_a_stream_ends_it(server: Server) -> None:
    body = question(user(ENGLISH, SIGN_URL), n=8, stream=True)  # two seconds and more

    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert server.health()["answering"] == 1

    assert server.wait_until(lambda health: health["answering"] == 0, within_s=1)


async def test_too_many_images_at_once_are_turned_away(server: Server) -> None:
    with Image.open(SIGN) as sign:
        large = sign.convert("RGB").resize((1200, 800))
    slow = question(user("x", data_url(encoded(large))))
    quick = [question(user("x", plain("red", (9, 9 + i)))) for i in range(40)]

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        asking = [client.post("/v1/chat/completions", json=body) for body in [slow, *quick]]
        answers = await asyncio.gather(*asking)

    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 32


def models_of(server: Server) -> set[str]:
    return {model["id"] for model in server.client.get("/v1/models").json()["data"]}


@needs_text_model
def test_the_models_are_listed(server: Server) -> None:
    assert models_of(server) == {"image-reader", TEXT_MODEL}
    assert server.health()["skipped"] == {}


@needs_text_model
def test_the_text_model_answers_in_one_piece(server: Server) -> None:
    ask = {"role": "user", "content": "Name the capital of France."}

    answer = server.ask(question(ask, model=TEXT_MODEL, temperature=0, max_tokens=30))

    assert "Paris" in content_of(answer)
    assert answer["model"] == TEXT_MODEL
    assert 0 < answer["usage"]["completion_tokens"] <= 30


@needs_text_model
def test_the_text_model_streams_with_usage(server: Server) -> None:
    ask = {"role": "user", "content": "Name the capital of France."}
    body = question(ask, model=TEXT_MODEL, temperature=0, max_tokens=30)

    *chunks, last = events(server, body | {"stream_options": {"include_usage": True}})

    assert "Paris" in told(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == server.ask(body)["usage"]["completion_tokens"]


@needs_text_model
def test_the_text_model_refuses_images(server: Server) -> None:
    body = question(user("What is this?", SIGN_URL), model=TEXT_MODEL)

    answer = server.client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image_mode"


@needs_text_model
def test_a_prompt_over_the_text_models_context_is_refused_in_the_envelope(server: Server) -> None:
    body = question({"role": "user", "content": "word " * 4000}, model=TEXT_MODEL)

    answer = server.client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def leave_early(server: Server, body: Json) -> None:
    """Ask, and hang up at the first bytes or after a moment."""
    url = f"{server.url}/v1/chat/completions"
    with suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=0.5) as answer:
        next(answer.iter_raw())


@needs_text_model
@pytest.mark.parametrize("is_stream", [True, False])
def test_clients_that_leave_free_the_text_model(server: Server, *, is_stream: bool) -> None:
    ask = {"role": "user", "content": "Tell me a story."}
    # Each would keep one of its two slots for half a minute.
    long = question(ask, model=TEXT_MODEL, max_tokens=1900, ignore_eos=True, stream=is_stream)
    leave_early(server, long)
    leave_early(server, long)

    begun = time.monotonic()
    server.ask(question(ask, model=TEXT_MODEL, max_tokens=2))

    assert time.monotonic() - begun < 8
    assert server.wait_until(lambda health: health["answering"] == 0, within_s=1)


def test_only_its_key_opens_it_where_one_is_set() -> None:
    with demo_backend({"DEMO_BACKEND_KEY": "open sesame"}) as server:
        good = server.client.get("/v1/models", headers={"authorization": "Bearer open sesame"})
        bad = server.client.get("/v1/models", headers={"authorization": "Bearer sesame"})

        assert good.status_code == 200
        assert bad.status_code == 401
        assert bad.json()["error"]["code"] == "invalid_api_key"
        assert server.health()["status"] == "ok"


@needs_proc
@needs_text_model
def test_a_text_model_that_is_killed_breaks_its_stream_and_comes_back(server: Server) -> None:
    ask = {"role": "user", "content": "Tell me a story."}
    long = question(ask, model=TEXT_MODEL, max_tokens=1900, ignore_eos=True, stream=True)
    with server.client.stream("POST", "/v1/chat/completions", json=long) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        (child,) = children_of(server.process.pid)
        os.kill(child, signal.SIGKILL)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            list(chunks)

    assert comes_true(lambda: children_of(server.process.pid) not in ([], [child]), within_s=5)
    assert server.ask(question(ask, model=TEXT_MODEL, max_tokens=1))


def test_a_text_model_that_dies_leaves_the_rest_alone(tmp_path: Path) -> None:
    """As on a processor without AVX2: the first use of the library is an illegal instruction."""
    package = tmp_path / "xllamacpp"
    package.mkdir()
    deadly = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    (package / "__init__.py").write_text(deadly)

    with demo_backend({"PYTHONPATH": str(tmp_path)}) as server:
        assert server.wait_until(lambda health: bool(health["skipped"]), within_s=20)

        assert server.health()["skipped"] == {TEXT_MODEL: "ended with signal SIGILL"}
        assert models_of(server) == {"image-reader"}


@pytest.mark.parametrize(
    ("cpu_info", "reason"),
    [
        ("flags\t\t: fpu avx avx2 fma f16c bmi2 sse4_2\n", None),
        ("processor: 0\nflags\t\t: fpu avx f16c\n", "this processor lacks avx2, bmi2, fma"),
        ("", "this processor lacks avx2, bmi2, f16c, fma"),
    ],
)
def test_an_old_processor_is_told_from_its_flags(cpu_info: str, reason: str | None) -> None:
    assert missing_cpu_flags(cpu_info) == reason


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


@needs_proc
@needs_text_model
def test_sigterm_ends_it_and_the_text_model_within_two_seconds() -> None:
    with demo_backend() as server:
        assert comes_true(lambda: bool(children_of(server.process.pid)), within_s=10)
        (child,) = children_of(server.process.pid)

        server.process.terminate()

        assert server.process.wait(timeout=2) == 0
        assert is_gone(child)


@needs_proc
@needs_text_model
@pytest.mark.parametrize("is_loaded", [False, True])
def test_the_text_model_does_not_outlive_a_killed_backend(*, is_loaded: bool) -> None:
    with demo_backend() as server:
        assert comes_true(lambda: bool(children_of(server.process.pid)), within_s=10)
        (child,) = children_of(server.process.pid)
        if is_loaded:
            server.ask(question(user("Hello"), model=TEXT_MODEL, max_tokens=1))

        server.process.kill()

        assert comes_true(lambda: is_gone(child), within_s=2 if is_loaded else 20)
