"""The body of POST /v1/chat/completions: every field is read, or refused with its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foveate.core.chat import (
    MAX_ALTERNATIVES,
    MAX_SEED,
    MAX_STOPS,
    MAX_TEMPERATURE,
    SamplingOptions,
)
from foveate.core.errors import BadRequest
from foveate.core.nearest_names import did_you_mean
from foveate.core.settings import Settings
from foveate.gateway.body_formats.json_body import JsonMembers, parse_members
from foveate.gateway.chat.fields import (
    SHOWN,
    read_choice,
    read_closed_object,
    read_flag,
    read_items,
    read_number,
    read_object,
    read_text,
    read_whole,
    shown,
)
from foveate.gateway.chat.messages import Messages, read_messages
from foveate.gateway.chat.objective import FOVEATE, RequestedObjective, read_requested
from foveate.gateway.chat.response_format import read_response_format

MAX_JSON_TOKENS, MAX_JSON_OBJECTS = 200_000, 20_000
"""Objects, arrays and commas in a body at most, those within texts included, and objects and arrays. The
parser takes up to a tenth of a second for them."""
MAX_STOP_CHARACTERS = 256
"""Of one stop text. Every token of an answer is compared with it."""
MAX_TOKENS = 10**6
"""More than any model generates: it stops at the end of its context."""
MAX_LABEL = 512
"""Characters of a label such as `user`."""
EXAMPLE = '{"model": "vit-t-chat", "messages": [{"role": "user", "content": "..."}]}'

Fields = Mapping[str, Any]
"""The members of the body that are not null, by name."""


@dataclass(frozen=True, slots=True)
class ChatBody:
    """A request as its body says it."""

    model: str
    messages: Messages
    options: SamplingOptions
    stream: bool = False
    include_usage: bool = False
    """The last chunk of a stream says the usage."""
    logprobs: bool = False
    """The answer has the probability of each token."""
    objective: RequestedObjective = RequestedObjective()  # noqa: RUF009 -- frozen


def parse_chat(text: bytes, settings: Settings) -> ChatBody:
    """The request in a JSON body. Raises BadRequest. Slow for large bodies: call it off the event loop."""
    return read_chat(parse_members(text, MAX_JSON_TOKENS, MAX_JSON_OBJECTS, EXAMPLE), settings)


def read_chat(body: JsonMembers, settings: Settings) -> ChatBody:
    """The request in a parsed body. Raises BadRequest."""
    given = read_object(body, "")
    for name, value in given.items():
        if name not in READ and name not in NEUTRAL and not (value is None and name in REFUSED):
            raise BadRequest(_unknown(name), name[:SHOWN])
    fields = {name: value for name, value in given.items() if value is not None}
    for name, check in NEUTRAL.items():
        if name in fields:
            check(fields[name], name)
    for name in ("model", "messages"):
        if name not in fields:
            raise BadRequest(f"{name} is missing; a body is an object as in {EXAMPLE}", name)
    stream = read_flag(fields.get("stream", False), "stream")
    logprobs = read_flag(fields.get("logprobs", False), "logprobs")
    return ChatBody(
        read_text(fields["model"], "model", MAX_LABEL),
        read_messages(fields["messages"], settings.chat_pictures, settings.chat_text_bytes),
        _options(fields, logprobs, settings),
        stream,
        _include_usage(fields, stream),
        logprobs,
        read_requested(fields.get(FOVEATE)),
    )


def _options(fields: Fields, logprobs: bool, settings: Settings) -> SamplingOptions:
    top_logprobs = read_whole(fields.get("top_logprobs", 0), "top_logprobs", 0, MAX_ALTERNATIVES)
    if "top_logprobs" in fields and not logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    seed = fields.get("seed")
    return SamplingOptions(
        _max_tokens(fields, settings),
        read_number(fields.get("temperature", 0.0), "temperature", 0, MAX_TEMPERATURE),
        read_number(fields.get("top_p", 1.0), "top_p", 0, 1, above=True),
        None if seed is None else read_whole(seed, "seed", -MAX_SEED, MAX_SEED),
        _stop(fields["stop"]) if "stop" in fields else (),
        top_logprobs,
        read_response_format(fields.get("response_format")),
    )


def _max_tokens(fields: Fields, settings: Settings) -> int:
    """`max_completion_tokens`, or its older name `max_tokens`."""
    names = ("max_tokens", "max_completion_tokens")
    values = {name: read_whole(fields[name], name, 1, MAX_TOKENS) for name in names if name in fields}
    if len(set(values.values())) > 1:
        raise BadRequest("max_tokens and max_completion_tokens are different; send one of them", names[0])
    return next(iter(values.values()), settings.chat_answer_tokens)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [("stop", value)] if isinstance(value, str) else list(read_items(value, "stop"))
    if len(texts) > MAX_STOPS:
        raise BadRequest(f"stop takes at most {MAX_STOPS} texts, not {len(texts)}", "stop")
    for where, text in texts:
        if not read_text(text, where, MAX_STOP_CHARACTERS):
            raise BadRequest(f"{where} is empty", where)
    return tuple(text for _, text in texts)


def _include_usage(fields: Fields, stream: bool) -> bool:
    where = "stream_options"
    if where not in fields:
        return False
    options = read_closed_object(fields[where], where, ("include_usage", "include_obfuscation"))
    if not stream:
        raise BadRequest(f"{where} needs stream: true", where)
    values = {
        name: read_flag(value, f"{where}.{name}") for name, value in options.items() if value is not None
    }
    if values.get("include_obfuscation"):
        path = f"{where}.include_obfuscation"
        raise BadRequest(f"{path} is not supported; remove it", path)
    return values.get("include_usage", False)


def _unknown(name: str) -> str:
    refused = REFUSED.get(name)
    if refused:
        return f"{name} is not supported: {refused}"
    hint = did_you_mean(name, (*READ, *NEUTRAL)) or f"; the page docs/chat.md lists the fields, {FOVEATE} too"
    return f"there is no field {name[:SHOWN]!r}{hint}"


def _only(*allowed: Any) -> Callable[[Any, str], None]:
    """The check of a field that is accepted with values that change nothing."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(each) and value == each for each in allowed):
            named = " or ".join(map(shown, allowed))
            raise BadRequest(f"{where} must be {named}, not {shown(value)}: no other is supported", where)

    return check


def _zero(value: Any, where: str) -> None:
    if read_number(value, where, -2, 2):
        raise BadRequest(f"{where} must be 0, not {shown(value)}: penalties are not supported", where)


def _empty(value: Any, where: str) -> None:
    if read_object(value, where):
        raise BadRequest(f"{where} must be empty: it is not supported", where)


def _no_metadata(value: Any, where: str) -> None:
    if read_object(value, where):
        raise BadRequest(f"{where} belongs to stored answers, and this server stores none", where)


def _label(value: Any, where: str) -> None:
    read_text(value, where, MAX_LABEL)


def _one_answer(value: Any, where: str) -> None:
    if read_whole(value, where, 1, 128) != 1:
        raise BadRequest(f"{where} must be 1, not {value}: send one request for each answer", where)


def _text_alone(value: Any, where: str) -> None:
    if [read_choice(item, path, ("text",)) for path, item in read_items(value, where)] != ["text"]:
        raise BadRequest(f'{where} must be ["text"]', where)


READ = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "seed", "stop", "logprobs", "top_logprobs", "response_format", FOVEATE,
)  # fmt: skip
"""The fields that decide something."""
NEUTRAL: Mapping[str, Callable[[Any, str], None]] = {
    "n": _one_answer,
    "user": _label,
    "safety_identifier": _label,
    "prompt_cache_key": _label,
    "store": _only(False),
    "metadata": _no_metadata,
    "frequency_penalty": _zero,
    "presence_penalty": _zero,
    "logit_bias": _empty,
    "modalities": _text_alone,
    "service_tier": _only("auto", "default"),
    "tool_choice": _only("none"),
}
"""The fields that are accepted with values that change nothing, and their checks."""
_TOOLS = "this server has no tools"
REFUSED: Mapping[str, str] = {
    "tools": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "web_search_options": _TOOLS,
    "audio": "answers are text",
    "prediction": "an answer is generated token by token",
    "reasoning_effort": "the models do not reason before they answer",
    "verbosity": "limit the answer with max_tokens",
    "moderation": "answers are not moderated",
    "prompt_cache_retention": "the server decides how long it caches",
    "prompt_cache_options": "the server decides how long it caches",
    "mm_processor_kwargs": f"pin a number of visual tokens with {FOVEATE}.plan",
    "top_k": "sample with temperature and top_p",
    "min_p": "sample with temperature and top_p",
    "guided_json": "send the schema in response_format",
}
"""Fields of OpenAI's API and of other servers, and why they are refused. Null is accepted."""
