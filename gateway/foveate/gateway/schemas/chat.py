"""The answers of the routes under /v1, for the OpenAPI document, and the body that they take."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foveate.core.outcome import Reason


class _Closed(BaseModel):
    """Answers have no other fields."""

    model_config = ConfigDict(extra="forbid")


class ChatCompute(_Closed):
    """The plan of the answer and its cost. What is known only at the end is null before it."""

    plan: str = Field(description="the plan under which the model ran")
    quality: float | None = Field(description="measured quality of the plan, 0 to 1; null: never measured")
    visual_tokens: int = Field(description="visual tokens of all pictures together")
    reason: Reason = Field(description="why the plan was chosen")
    gflops: float | None = Field(description="billions of multiply-adds of the whole answer")
    queue_s: float = Field(description="seconds from admission to the first step for the chat")
    first_token_s: float = Field(description="seconds from admission to the first token")
    total_s: float | None = Field(description="seconds from admission to the last token")
    slo_met: bool | None = Field(description="whether the deadlines were met; null without one")


class PromptTokensDetails(_Closed):
    """Kinds of tokens of the prompt."""

    image_tokens: int = Field(description="visual tokens")
    cached_tokens: int = Field(description="tokens whose keys and values were in the cache")


class ChatUsage(_Closed):
    """The tokens of a chat and of its answer."""

    prompt_tokens: int = Field(description="text tokens and visual tokens")
    completion_tokens: int = Field(description="tokens of the answer, the end mark included")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(_Closed):
    """A token and its probability."""

    token: str
    bytes: list[int] = Field(description="the bytes of the token, which may be a part of a character")
    logprob: float


class ChosenLogprob(TopLogprob):
    """A token of the answer and its probability."""

    top_logprobs: list[TopLogprob] = Field(description="the most probable tokens in its place")


class ChoiceLogprobs(_Closed):
    """The probabilities of an answer's tokens."""

    content: list[ChosenLogprob]
    refusal: None = None


class AnswerMessage(_Closed):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class AnswerChoice(_Closed):
    """The one answer of a request."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class _Common(_Closed):
    id: str
    created: int = Field(description="seconds since 1970")
    model: str
    system_fingerprint: str | None = Field(description="from the digest of the weights")


class ChatCompletion(_Common):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[AnswerChoice]
    usage: ChatUsage
    foveate: ChatCompute


class AnswerDelta(_Closed):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChunkChoice(_Closed):
    """The part of the one answer that a chunk has."""

    index: Literal[0]
    delta: AnswerDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(_Common):
    """One event of a stream. The stream ends with the event `[DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice] = Field(description="empty in the chunk with the usage")
    usage: ChatUsage | None = Field(None, description="in the last chunk, if the request asked for it")
    foveate: ChatCompute | None = Field(None, description="in the first chunk and in that with finish_reason")


class OpenAiModel(_Closed):
    """A model that answers chats."""

    id: str
    object: Literal["model"]
    created: int = Field(description="seconds since 1970 at which the server was started")
    owned_by: str


class OpenAiModelList(_Closed):
    """The models that answer chats."""

    object: Literal["list"]
    data: list[OpenAiModel]


class ErrorDetails(_Closed):
    """What is wrong."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="the field of the request that is wrong, as in messages[0].content")
    code: str | None


class OpenAiError(_Closed):
    """An error of a route under /v1."""

    error: ErrorDetails


def _optional(schema: dict[str, Any], description: str = "") -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"anyOf": [schema, {"type": "null"}], **described}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


_TEXT_PART = _object({"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}}, "type", "text")
_IMAGE_PART = _object(
    {
        "type": {"const": "image_url"},
        "image_url": _object(
            {
                "url": {"type": "string", "pattern": "^(https?://|data:)"},
                "detail": _optional({"enum": ["low", "auto", "high"]}),
            },
            "url",
        ),
    },
    "type",
    "image_url",
)
_MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT_PART, _IMAGE_PART]}},
            ]
        },
    },
    "role",
    "content",
)
_FOVEATE = _object(
    {
        "plan": _optional({"type": "string"}),
        "slo_ms": _optional({"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000}),
        "ttft_ms": _optional({"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000}),
        "min_quality": _optional({"type": "number", "minimum": 0, "maximum": 1}),
        "min_quality_worst": _optional({"type": "number", "minimum": 0, "maximum": 1}),
        "priority": _optional({"type": "integer", "minimum": -9, "maximum": 9}),
        "slo_class": _optional({"type": "string"}),
        "may_shorten": _optional({"type": "boolean"}),
    }
)
_FORMAT = _object(
    {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": _optional(
            _object(
                {
                    "name": {"type": "string"},
                    "description": _optional({"type": "string"}),
                    "schema": {"type": "object"},
                    "strict": _optional({"type": "boolean"}),
                },
                "name",
                "schema",
            )
        ),
    },
    "type",
)
_STOP = {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1, "maxLength": 256}}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 10**6}
CHAT_BODY = _object(
    {
        "model": {"type": "string"},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "stream": _optional({"type": "boolean"}, "send the answer as server-sent events"),
        "stream_options": _optional(_object({"include_usage": {"type": "boolean"}}), "needs stream"),
        "max_tokens": _optional(_COUNT, "tokens of the answer at most"),
        "max_completion_tokens": _optional(_COUNT, "the same as max_tokens"),
        "temperature": _optional(
            {"type": "number", "minimum": 0, "maximum": 2}, "default 0: always the most probable token"
        ),
        "top_p": _optional({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "seed": _optional({"type": "integer"}, "the same seed gives the same answer"),
        "stop": _optional(
            {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 256}, _STOP]},
            "the answer ends before the first of these texts",
        ),
        "logprobs": _optional({"type": "boolean"}, "report the probability of each token"),
        "top_logprobs": _optional({"type": "integer", "minimum": 0, "maximum": 20}, "needs logprobs"),
        "response_format": _optional(_FORMAT, "JSON that obeys a schema"),
        "n": _optional({"const": 1}),
        "user": _optional({"type": "string", "maxLength": 512}, "changes nothing"),
        "foveate": _optional(_FOVEATE, "the objective, in place of the headers of the same meaning"),
    },
    "model",
    "messages",
)
"""The body of POST /v1/chat/completions."""
