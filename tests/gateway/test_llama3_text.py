"""Llama 3's tokens: the vocabulary, the chat template to the token, and texts meant to hurt."""

import datetime
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.counting import llama3, llama3_vision
from gateway.counting.messages import IMAGE, ImagePart, Part, PromptMessage
from gateway.errors import InvalidRequest

QUESTION = "這張圖裡面有什麼?"
ANSWER = (
    "這張圖片顯示的是一排大型的電腦機櫃,機櫃上標有“TAIWANIA 2”的標誌,"
    "可能是某種高性能計算機或數據中心設備。"
)
BEGIN = "<|begin_of_text|>"
END = "<|eot_id|>"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
NO_SYSTEM = f"{BEGIN}<|start_header_id|>system<|end_header_id|>\n\n{DATES}{END}"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
IPYTHON = "<|start_header_id|>ipython<|end_header_id|>\n\n"
TOOL = {"type": "function", "function": {"name": "clock", "description": "時間", "parameters": {}}}
TOOLS = json.dumps([TOOL], separators=(",", ":")).encode()
CALL = json.dumps(
    [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"台北"}'}}]
)


def said(role: str, *parts: Part, calls: str | None = None) -> PromptMessage:
    return PromptMessage(role, parts, calls)


# What the published template writes for a chat, written out by hand.
PROMPTS = {
    "the seed's example": (
        [said("user", IMAGE, QUESTION)],
        f"{BEGIN}{USER}<|image|>{QUESTION}{END}{ASSISTANT}",
    ),
    "an image after the text": (
        [said("user", QUESTION, IMAGE)],
        f"{BEGIN}{USER}{QUESTION}<|image|>{END}{ASSISTANT}",
    ),
    "two images in a row and text around": (
        [said("user", "a ", IMAGE, IMAGE, " b")],
        f"{BEGIN}{USER}a <|image|><|image|> b{END}{ASSISTANT}",
    ),
    "no image": ([said("user", "Hi")], f"{NO_SYSTEM}{USER}Hi{END}{ASSISTANT}"),
    "texts that touch are one": (
        [said("user", "Hel", "lo wor", "ld")],
        f"{NO_SYSTEM}{USER}Hello world{END}{ASSISTANT}",
    ),
    "space around a text is kept, and joins the header's": (
        [said("user", "\n\n Hi \n")],
        f"{NO_SYSTEM}{USER}\n\n Hi \n{END}{ASSISTANT}",
    ),
    "a system message, trimmed": (
        [said("system", " Be kind.\n"), said("user", "Hi")],
        f"{NO_SYSTEM.removesuffix(END)}Be kind.{END}{USER}Hi{END}{ASSISTANT}",
    ),
    "a system message beside an image": (
        [said("system", "Be kind."), said("user", IMAGE)],
        f"{BEGIN}<|start_header_id|>system<|end_header_id|>\n\nBe kind.{END}"
        f"{USER}<|image|>{END}{ASSISTANT}",
    ),
    "an empty system message beside an image": (
        [said("system", " "), said("user", IMAGE)],
        f"{BEGIN}{USER}<|image|>{END}{ASSISTANT}",
    ),
    "many turns, the image in the first": (
        [said("user", IMAGE, "A?"), said("assistant", "B."), said("user", "C?")],
        f"{BEGIN}{USER}<|image|>A?{END}{ASSISTANT}B.{END}{USER}C?{END}{ASSISTANT}",
    ),
    "an unusual role": (
        [said("developer", "Be kind."), said("user", IMAGE)],
        f"{BEGIN}<|start_header_id|>developer<|end_header_id|>\n\nBe kind.{END}"
        f"{USER}<|image|>{END}{ASSISTANT}",
    ),
    "a tool call and its result": (
        [
            said("user", IMAGE, "Time?"),
            said("assistant", "left out", calls=CALL),
            said("tool", '"noon"'),
        ],
        f"{BEGIN}{USER}<|image|>Time?{END}"
        f'{ASSISTANT}{{"name": "clock", "parameters": {{"zone": "台北"}}}}{END}'
        f'{IPYTHON}"\\"noon\\""{END}{ASSISTANT}',
    ),
}


def tokens_of(prompt: str) -> int:
    """Tokenize a whole prompt, with the special tokens in it as what they are."""
    return len(llama3.encoding().encode(prompt, allowed_special="all"))


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_counts_as_the_template_writes_it(name: str) -> None:
    chat, prompt = PROMPTS[name]
    assert llama3_vision.count(chat) == tokens_of(prompt)


def test_tools_stand_before_the_first_question_indented() -> None:
    prompt = (
        f"{BEGIN}<|start_header_id|>system<|end_header_id|>\n\n"
        f"Environment: ipython\n{DATES}{END}{USER}"
        "Given the following functions, please respond with a JSON for a function call "
        "with its proper arguments that best answers the given prompt.\n\n"
        'Respond in the format {"name": function name, "parameters": dictionary of argument name '
        "and its value}.Do not use variables.\n\n"
        f"{json.dumps(TOOL, indent=4, ensure_ascii=False)}\n\nTime?{END}{ASSISTANT}"
    )
    assert llama3_vision.count([said("user", "\n \tTime?  \n")], TOOLS) == tokens_of(prompt)


def test_the_seeds_example_has_20_text_tokens() -> None:
    assert llama3_vision.count([said("user", IMAGE, QUESTION)]) == 20
    assert llama3_vision.count([said("user", QUESTION, IMAGE)]) == 20


def test_a_chat_without_images_has_25_more_for_the_dates() -> None:
    with_image = llama3_vision.count([said("user", IMAGE, QUESTION)])
    assert llama3_vision.count([said("user", QUESTION)]) == with_image - 1 + 25


def test_the_seeds_answer_is_its_words_and_the_end_of_the_turn() -> None:
    """The document's completion_tokens are 52."""
    assert llama3.count(ANSWER) + 1 == 52


def test_any_day_of_the_year_is_as_many_tokens() -> None:
    days = (datetime.date(2028, 1, 1) + datetime.timedelta(days) for days in range(366))
    dates = {DATES.replace("26 Jul 2024", day.strftime("%d %b %Y")) for day in days}
    assert len(dates) == 366
    assert {llama3.count(text) for text in dates} == {llama3.count(DATES)}


plain_texts = st.text(max_size=40).filter(lambda text: "<|" not in text)
contents = st.lists(plain_texts | st.just(IMAGE), max_size=5).filter(
    lambda parts: all("<|" not in f"{one}{other}" for one, other in pairwise(parts))
)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), contents), max_size=4))
def test_the_counts_of_the_parts_add_up_to_the_whole(chat: list[tuple[str, list[Part]]]) -> None:
    messages = [said("user", IMAGE), *(said(role, *parts) for role, parts in chat)]
    prompt = BEGIN
    for message in messages:
        written = ("<|image|>" if isinstance(part, ImagePart) else part for part in message.parts)
        prompt += f"<|start_header_id|>{message.role}<|end_header_id|>\n\n{''.join(written)}{END}"
    assert llama3_vision.count(messages) == tokens_of(prompt + ASSISTANT)


@pytest.mark.parametrize("special", [BEGIN, END, "<|image|>", "<|start_header_id|>"])
def test_a_special_token_that_a_user_writes_is_plain_text(special: str) -> None:
    assert llama3.count(special) > 1
    assert tokens_of(special) == 1


def test_several_tool_calls_are_a_message_each() -> None:
    both = json.dumps([*json.loads(CALL), *json.loads(CALL)])
    in_one = llama3_vision.count([said("assistant", calls=both)])
    assert in_one == llama3_vision.count([said("assistant", calls=CALL)] * 2)


def test_arguments_that_are_no_json_count_as_a_string() -> None:
    call = json.dumps([{"function": {"name": "f", "arguments": "{oops"}}])
    prompt = f'{NO_SYSTEM}{ASSISTANT}{{"name": "f", "parameters": "{{oops"}}{END}{ASSISTANT}'
    assert llama3_vision.count([said("assistant", calls=call)]) == tokens_of(prompt)


def test_an_empty_list_of_tools_or_calls_is_none() -> None:
    chat, same = [said("assistant", "Hi")], [said("assistant", "Hi", calls="[]")]
    assert llama3_vision.count(same, b"[]") == llama3_vision.count(chat)


@pytest.mark.parametrize("tools", [b"{", b"{}", b'"x"', b"[" * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_tools_that_cannot_be_read_are_refused(tools: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        llama3_vision.count([said("user", "Hi")], tools)
    assert refusal.value.param == "tools"


def test_tools_that_indentation_blows_up_are_refused() -> None:
    nested = b"[" * 90 + b",".join([b"1"] * 50_000) + b"]" * 90
    with pytest.raises(InvalidRequest, match="too large"):
        llama3_vision.count([said("user", "Hi")], nested)


@pytest.mark.parametrize("calls", ["{}", "[1]", '[{"function":{}}]', '[{"function":{"name":1}}]'])
def test_a_tool_call_without_a_name_is_refused(calls: str) -> None:
    with pytest.raises(InvalidRequest):
        llama3_vision.count([said("assistant", calls=calls)])


words = st.text(st.characters(categories=["L"], max_codepoint=0x9FFF), min_size=1, max_size=12)
gaps = st.text(st.sampled_from(" \n\t\r,.!'-0123456789，。"), min_size=1, max_size=6)
prose = st.lists(st.tuples(words, gaps), max_size=60).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


@given(prose, st.integers(24, 80))
def test_a_long_text_is_cut_where_it_changes_nothing(text: str, chars_max: int) -> None:
    pieces = list(llama3.cut(text, chars_max))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= chars_max
    assert sum(map(llama3.count, pieces)) == llama3.count(text)


@pytest.mark.parametrize("character", [" ", "\t", "\n", "a", "^"])
def test_a_million_of_one_character_is_counted(character: str) -> None:
    """Left whole, a million spaces make tiktoken panic with something that is no Exception."""
    tokens = llama3.count(character * 1_000_000 + "x")
    assert 1_000_000 // llama3.TOKEN_BYTES_MAX <= tokens <= 260_000


def test_half_a_surrogate_pair_is_counted() -> None:
    assert llama3.count("a\ud800b") > 0


def test_no_token_is_longer_than_stated() -> None:
    encoding = llama3.encoding()
    assert max(map(len, encoding.token_byte_values())) == llama3.TOKEN_BYTES_MAX


def test_the_vocabulary_is_metas_with_its_licence_beside_it() -> None:
    folder = llama3.VOCABULARY.parent
    assert llama3.SHA256 in (folder / "NOTICE").read_text(encoding="utf-8")
    assert (folder / "LICENSE").read_text(encoding="utf-8").startswith("META LLAMA 3 COMMUNITY")


def test_another_vocabulary_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    other.write_bytes(llama3.VOCABULARY.read_bytes() + b"eA== 999999\n")
    monkeypatch.setattr(llama3, "VOCABULARY", other)
    with pytest.raises(ValueError, match="not the published"):
        llama3.encoding.__wrapped__()
