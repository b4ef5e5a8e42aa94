"""The registry of counters, and what each promises about its bound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.counting import counters
from gateway.counting.counters import UnknownCounter
from gateway.counting.messages import IMAGE, PromptMessage, text_chars

TOOLS = (
    b'[{"type":"function","function":{"name":"f","parameters":{"a":[1,2,{"b":"\xe5\x8f\xb0"}]}}}]'
)
CALLS = '[{"id":"1","function":{"name":"f","arguments":"[1,1,1,1,1,1]"}}]'

messages = st.builds(
    PromptMessage,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(st.text(max_size=30) | st.just(IMAGE), max_size=4).map(tuple),
    st.sampled_from([None, CALLS]),
)
chats = st.lists(messages, max_size=5)


def test_every_name_has_its_counter() -> None:
    assert counters.names() == ("llama-3.2-vision", "generic")
    assert [counters.get(name).name for name in counters.names()] == list(counters.names())


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownCounter, match=r"'gpt-9'; there are: llama-3\.2-vision, generic"):
        counters.get("gpt-9")


def test_the_seeds_request_is_6424_tokens() -> None:
    counter = counters.get("llama-3.2-vision")
    image = counter.count_image(1920, 1280)
    text = counter.count_prompt([PromptMessage("user", (IMAGE, "這張圖裡面有什麼?"))])
    assert (image.canvas.tiles, image.tokens, text) == (4, 6404, 20)


@given(chats, st.sampled_from([None, TOOLS]))
def test_an_exact_counters_bound_is_its_count(
    chat: list[PromptMessage], tools: bytes | None
) -> None:
    counter = counters.get("llama-3.2-vision")
    bound = counter.prompt_upper_bound(chat, tools=tools)
    assert bound == counter.count_prompt(chat, tools=tools)


@given(chats, st.sampled_from([None, TOOLS]))
def test_the_generic_bound_holds_for_its_estimate_and_for_llama(
    chat: list[PromptMessage], tools: bytes | None
) -> None:
    bound = counters.get("generic").prompt_upper_bound(chat, tools=tools)
    for name in counters.names():
        assert counters.get(name).count_prompt(chat, tools=tools) <= bound


@given(st.text(max_size=60), st.sampled_from(["user", "tool"]))
def test_the_generic_bound_grows_by_a_token_a_byte(text: str, role: str) -> None:
    generic = counters.get("generic")
    empty = generic.prompt_upper_bound([PromptMessage(role, ("",))])
    bound = generic.prompt_upper_bound([PromptMessage(role, (text,))]) - empty
    quoted_bytes = len(json.dumps(text)) - 2
    assert bound == (len(text.encode()) if role == "user" else quoted_bytes)


def test_the_generic_bound_holds_room_for_tools_indented_and_escaped() -> None:
    generic, chat = counters.get("generic"), [PromptMessage("user", ("Hi",))]
    room = generic.prompt_upper_bound(chat, tools=TOOLS) - generic.prompt_upper_bound(chat)
    assert room == len(json.dumps(json.loads(TOOLS)[0], indent=4))


def test_the_generic_bound_of_an_image_is_that_of_the_hungriest_model() -> None:
    generic = counters.get("generic")
    assert generic.image_upper_bound(3840, 2160) == 138 * 78  # one per patch of 28 × 28 px
    assert generic.image_upper_bound(10, 10) == 4 * 1601
    assert generic.image_upper_bound(16_000, 16_000) == 16_384


@pytest.mark.parametrize("name", counters.names())
def test_an_image_never_counts_for_more_than_its_bound(name: str) -> None:
    counter = counters.get(name)
    for size in [(1, 1), (560, 560), (1170, 2532), (8000, 6000)]:
        assert counter.count_image(*size).tokens <= counter.image_upper_bound(*size)


def test_the_length_to_count_is_that_of_texts_calls_and_tools() -> None:
    chat = [PromptMessage("user", ("abc", IMAGE, "de")), PromptMessage("assistant", (), "[]")]
    assert text_chars(chat, b"[1]") == 10
