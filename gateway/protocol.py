"""OpenAI's chat completions, as the door reads them.

A body is parsed once: what Tessera must understand is decoded and checked, everything else stays the raw JSON
that the client sent. Going upstream, the body is written anew from those pieces, so that what the backend reads
is what was counted (a key given twice has one meaning, a base64 image is copied and never decoded).
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Raw

from gateway.counting.messages import IMAGE, PromptMessage
from gateway.errors import InvalidImage, InvalidRequest
from gateway.payloads import Lifted, Piece

T = TypeVar("T")
RawObject = dict[str, Raw]

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
N_MAX: Final = 128

# Parameters that the door reads itself.
READ_HERE: Final = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "tools",
    }
)
# Parameters that pass through untouched. The list is closed: a parameter that rewrites the prompt behind our
# back (a chat template, image processing options) would make the count wrong.
PASSED: Final = frozenset(
    """
    audio frequency_penalty function_call functions logit_bias logprobs metadata modalities
    parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort response_format
    safety_identifier seed service_tier stop store temperature tool_choice top_logprobs top_p user
    verbosity web_search_options
    allowed_token_ids bad_words cache_prompt grammar guided_choice guided_grammar guided_json guided_regex
    ignore_eos include_stop_str_in_output json_schema length_penalty min_p min_tokens mirostat mirostat_eta
    mirostat_tau repeat_last_n repeat_penalty repetition_penalty skip_special_tokens
    spaces_between_special_tokens stop_token_ids structured_outputs top_a top_k typical_p
    """.split()
)
NUMBER_RANGES: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
SEED_MAX: Final = 2**63 - 1
STOPS_MAX: Final = 4
STOP_CHARS_MAX: Final = 1024
LOGIT_BIASES_MAX: Final = 1024

_object = msgspec.json.Decoder(RawObject)
_objects = msgspec.json.Decoder(list[RawObject])
_string = msgspec.json.Decoder(str)
_bool = msgspec.json.Decoder(bool)
_integer = msgspec.json.Decoder(int)
_number = msgspec.json.Decoder(float)
_stops: msgspec.json.Decoder[str | list[str]] = msgspec.json.Decoder(str | list[str])
NULL: Final = Raw(b"null")
EMPTY_LIST: Final = Raw(b"[]")


@dataclass(slots=True)
class ImageSlot:
    """Where an image stands in the messages, and what the client put there."""

    param: str
    url: bytes | memoryview  # the JSON string's content, without escapes
    _part: dict[str, Any]
    _image_url: RawObject

    @property
    def is_data_url(self) -> bool:
        return bytes(self.url[:5]).lower() == b"data:"

    def replace(self, data_url: bytes) -> None:
        """Put these bytes in the URL's place. They are base64 and a media type: nothing to escape."""
        self._part["image_url"] = {**self._image_url, "url": Raw(b'"' + data_url + b'"')}


@dataclass(slots=True)
class ChatRequest:
    """A chat completion request whose shape is sound. What its model allows is not checked here."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None
    prompt: list[PromptMessage]
    tools: bytes | None
    images: list[ImageSlot]
    _lifted: Lifted = field(repr=False)
    _fields: dict[str, Any] = field(repr=False)
    _stream_options: RawObject = field(repr=False)

    def upstream_body(self, *, model: str, max_tokens: int, running_usage: bool) -> list[Piece]:
        """Write the backend's body, in pieces: its name of the model, max_tokens always set, usage always asked for."""
        fields = self._fields
        fields["model"] = model
        fields["max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"] = (
            max_tokens
        )
        if self.stream:
            options: dict[str, Any] = {**self._stream_options, "include_usage": True}
            if running_usage:
                options["continuous_usage_stats"] = True
            fields["stream_options"] = options
        return self._lifted.put_back(msgspec.json.encode(fields))


def parse_chat(body: bytes, *, messages_max: int, images_max: int) -> ChatRequest:
    """Read the body of a chat completion request. Raises InvalidRequest that names the parameter.

    Its images are not read with it, unless one that was lifted out turns out to be something else.
    """
    lifted = Lifted(body)
    if lifted:
        with suppress(InvalidRequest):
            chat = _parse(lifted, messages_max=messages_max, images_max=images_max)
            if lifted.is_taken:
                return chat
        lifted = Lifted(body, bytes_min=len(body))
    return _parse(lifted, messages_max=messages_max, images_max=images_max)


def _parse(lifted: Lifted, *, messages_max: int, images_max: int) -> ChatRequest:
    fields = _top_level(lifted.document)
    stream = _optional(fields, "stream", _bool, "a boolean") or False
    options = _optional(fields, "stream_options", _object, "an object") or {}
    if options and not stream:
        _refuse("stream_options is only allowed with stream: true.", "stream_options")
    parts = _Messages(fields, lifted, messages_max=messages_max, images_max=images_max)
    checked: dict[str, Any] = dict(fields)
    checked["messages"] = parts.messages
    return ChatRequest(
        model=_model(fields),
        stream=stream,
        include_usage=_optional(options, "include_usage", _bool, "a boolean") or False,
        n=_ranged_integer(fields, "n", 1, N_MAX) or 1,
        max_tokens=_max_tokens(fields),
        prompt=parts.prompt,
        tools=_tools(fields),
        images=parts.images,
        _lifted=lifted,
        _fields=checked,
        _stream_options={
            key: value for key, value in options.items() if key == "include_obfuscation"
        },
    )


def _top_level(body: bytes) -> RawObject:
    try:
        fields = _object.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.", code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise _invalid_json() from None
    for name in fields:
        if name not in PASSED and name not in READ_HERE:
            _refuse(f"Unknown parameter: {name[:100]!r}.", name[:100], "unknown_parameter")
    _check_text(fields, but="messages")
    _check_passed(fields)
    return fields


def _check_passed(fields: RawObject) -> None:
    """Refuse what no backend may be asked for, of the parameters that pass."""
    for name, (low, high) in NUMBER_RANGES.items():
        if name in fields:
            _ranged_number(fields, name, low, high)
    _ranged_integer(fields, "seed", -SEED_MAX - 1, SEED_MAX)
    stop = _optional(fields, "stop", _stops, "a string or a list of strings") or []
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > STOPS_MAX or any(len(each) > STOP_CHARS_MAX for each in stops):
        _refuse(f"stop takes {STOPS_MAX} texts of {STOP_CHARS_MAX} characters at most.", "stop")
    biases = _optional(fields, "logit_bias", _object, "an object") or {}
    if len(biases) > LOGIT_BIASES_MAX:
        _refuse(f"logit_bias takes {LOGIT_BIASES_MAX} tokens at most.", "logit_bias")


def _check_text(fields: dict[str, Any], *, but: str) -> None:
    """Refuse what is not UTF-8 in pieces that pass: they are never decoded, so nobody else would notice."""
    try:
        for name, value in fields.items():
            if name != but:
                bytes(value).decode()
    except UnicodeDecodeError:
        raise _invalid_json() from None


def _model(fields: RawObject) -> str:
    name = _optional(fields, "model", _string, "a string")
    if not name:
        _refuse("You must provide a model parameter.", "model", "missing_required_parameter")
    return name


def _max_tokens(fields: RawObject) -> int | None:
    old = _ranged_integer(fields, "max_tokens", 1, 2**31)
    new = _ranged_integer(fields, "max_completion_tokens", 1, 2**31)
    if old and new:
        _refuse("Give max_tokens or max_completion_tokens, not both.", "max_tokens")
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) == NULL:
            del fields[name]
    return old or new


def _tools(fields: RawObject) -> bytes | None:
    """Return what describes tools in the prompt; the older `functions` say the same."""
    given = [fields[name] for name in ("tools", "functions") if fields.get(name, NULL) != NULL]
    if len(given) > 1:
        _refuse("Give tools or functions, not both.", "functions")
    return bytes(given[0]) if given else None


class _Messages:
    """The messages in two forms: to be counted (`prompt`), and to be written for the backend (`messages`)."""

    def __init__(
        self, fields: RawObject, lifted: Lifted, *, messages_max: int, images_max: int
    ) -> None:
        self._lifted = lifted
        self.messages: list[dict[str, Any]] = []
        self.prompt: list[PromptMessage] = []
        self.images: list[ImageSlot] = []
        self._images_max = images_max
        given = _optional(fields, "messages", _objects, "a list of objects")
        if not given or len(given) > messages_max:
            _refuse(f"messages must hold between 1 and {messages_max} messages.", "messages")
        for index, message in enumerate(given):
            self._read(message, f"messages[{index}]")

    def _read(self, message: RawObject, param: str) -> None:
        role = _optional(message, "role", _string, "a string", param)
        if role not in ROLES:
            _refuse(f"{param}.role must be one of {', '.join(sorted(ROLES))}.", f"{param}.role")
        if role == "tool" and "tool_call_id" not in message:
            _refuse("A message of role 'tool' needs tool_call_id.", f"{param}.role")
        _check_text(message, but="content")
        calls = message.get("tool_calls")
        calls_json = None if calls is None or calls in (NULL, EMPTY_LIST) else bytes(calls).decode()
        written: dict[str, Any] = dict(message)
        parts = self._content(
            message, written, f"{param}.content", role=role, has_calls=calls_json is not None
        )
        self.messages.append(written)
        self.prompt.append(PromptMessage(role=role, parts=parts, tool_calls_json=calls_json))

    def _content(
        self, message: RawObject, written: dict[str, Any], param: str, *, role: str, has_calls: bool
    ) -> tuple[Any, ...]:
        raw = bytes(message.get("content", NULL))
        if raw.startswith(b'"'):
            return (_decode(_string, raw, "a string or a list of parts", param),)
        if raw == b"null":
            if role == "assistant" and (
                has_calls or "function_call" in message or "refusal" in message
            ):
                return ()
            _refuse(f"{param} must be a string or a list of parts.", param, "invalid_type")
        parts: list[dict[str, Any]] = [
            dict(part) for part in _decode(_objects, raw, "a string or a list of parts", param)
        ]
        if not parts:
            _refuse(f"{param} must hold at least one part.", param)
        written["content"] = parts
        return tuple(self._part(part, f"{param}[{index}]") for index, part in enumerate(parts))

    def _part(self, part: dict[str, Any], param: str) -> Any:
        _check_text(part, but="image_url")
        kind = _optional(part, "type", _string, "a string", param)
        if kind in {"text", "refusal"}:
            text = _optional(part, kind, _string, "a string", param)
            if text is None:
                _refuse(
                    f"{param}.{kind} is missing.", f"{param}.{kind}", "missing_required_parameter"
                )
            return text
        if kind == "image_url":
            self._image(part, param)
            return IMAGE
        return _refuse(
            f"{param}.type must be text or image_url; {kind!r} is not supported.", f"{param}.type"
        )

    def _image(self, part: dict[str, Any], param: str) -> None:
        raw = bytes(part.get("image_url", NULL))
        if raw.startswith(b'"'):  # some clients give the URL alone
            image_url: RawObject = {"url": Raw(raw)}
        else:
            image_url = _decode(_object, raw, "an object with a url", f"{param}.image_url")
        _check_text(image_url, but="url")
        url = bytes(image_url.get("url", NULL))
        if not url.startswith(b'"'):
            _refuse(
                f"{param}.image_url.url must be a string.", f"{param}.image_url", "invalid_type"
            )
        if b"\\" in url:
            url = b'"' + _decode(_string, url, "a string", f"{param}.image_url").encode() + b'"'
        string = self._lifted.take(url[1:-1]) or url[1:-1]
        self.images.append(ImageSlot(f"{param}.image_url", string, part, image_url))
        if len(self.images) > self._images_max:
            raise InvalidImage(
                f"A request may hold at most {self._images_max} images.",
                code="too_many_images",
                param=param,
            )


def _optional(
    fields: dict[str, Any], name: str, decoder: msgspec.json.Decoder[T], what: str, at: str = ""
) -> T | None:
    raw = fields.get(name)
    if raw is None or raw == NULL:
        return None
    return _decode(decoder, raw, what, f"{at}.{name}" if at else name)


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes | Raw, what: str, param: str) -> T:
    try:
        return decoder.decode(raw)
    except UnicodeDecodeError:
        raise _invalid_json() from None
    except msgspec.DecodeError:
        _refuse(f"{param} must be {what}.", param, "invalid_type")


def _ranged_integer(fields: RawObject, name: str, low: int, high: int) -> int | None:
    value = _optional(fields, name, _integer, "an integer")
    if value is None:
        return None
    if value < low:
        _refuse(f"{name} must be at least {low}.", name, "integer_below_min_value")
    if value > high:
        _refuse(f"{name} must be at most {high}.", name, "integer_above_max_value")
    return value


def _ranged_number(fields: RawObject, name: str, low: float, high: float) -> None:
    value = _optional(fields, name, _number, "a number")
    if value is None:
        return
    if value < low:
        _refuse(f"{name} must be at least {low:g}.", name, "decimal_below_min_value")
    if value > high:
        _refuse(f"{name} must be at most {high:g}.", name, "decimal_above_max_value")


def _invalid_json() -> InvalidRequest:
    return InvalidRequest("The body is not valid JSON.", code="invalid_json")


def _refuse(message: str, param: str, code: str = "invalid_value") -> NoReturn:
    raise InvalidRequest(message, code=code, param=param)
