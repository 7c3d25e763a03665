"""A chat about pictures: its turns, its options, and the events of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from foveate.core.errors import BadRequest
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.core.request import Objective

MAX_TEMPERATURE = 2.0
MAX_ALTERNATIVES = 20
MAX_STOPS = 4
MAX_SEED = 2**63 - 1
"""These four are the limits of OpenAI's API."""

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
"""Why an answer ended: by its end mark or a stop text, or by a limit."""
GenerationEnd = FinishReason | Literal["error"]
"""Why no further token is generated. error: scores were not finite, so that the answer failed."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture within a message."""


Part = str | ImagePart
"""A part of a message: text, or a picture."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: Role
    parts: Sequence[Part]


def last_question(turns: Sequence[Turn]) -> str:
    """The text of the last user's turn."""
    asked = next((turn for turn in reversed(turns) if turn.role == "user"), None)
    return " ".join(part for part in asked.parts if isinstance(part, str)) if asked else ""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How an answer is generated. Raises BadRequest for values out of range."""

    max_tokens: int = 64
    """Tokens of the answer at most."""
    temperature: float = 0.0
    """0: always the token with the highest score."""
    top_p: float = 1.0
    """Sample among the most probable tokens that together have this probability."""
    seed: int | None = None
    """The same seed gives the same answer. None: a random seed."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""
    top_logprobs: int = 0
    """For each token of the answer, the number of most probable tokens to report."""
    json_schema: str = ""
    """The JSON schema, as JSON text, that the answer obeys; empty for any answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadRequest(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise BadRequest(f"temperature must be from 0 to {MAX_TEMPERATURE:g}, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise BadRequest(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and not -MAX_SEED <= self.seed <= MAX_SEED:
            raise BadRequest(f"seed must be a whole number of 64 bits, not {self.seed}")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise BadRequest(f"stop takes at most {MAX_STOPS} texts, and none of them is empty")
        if not 0 <= self.top_logprobs <= MAX_ALTERNATIVES:
            raise BadRequest(f"top_logprobs must be from 0 to {MAX_ALTERNATIVES}, not {self.top_logprobs}")


@dataclass(frozen=True, slots=True)
class ChatPicture:
    """A decoded picture of a chat."""

    digest: bytes
    """SHA-256 of the encoded picture: 32 bytes."""
    pixels: Any
    """The decoded picture, as the model's runner takes it."""
    size_bytes: int
    """Memory that the pixels hold."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat to answer, with its objective. The pictures are decoded already."""

    id: str
    model: str
    """Name of the model."""
    turns: Sequence[Turn]
    pictures: Sequence[ChatPicture]
    """In the order of the `ImagePart`s of the turns."""
    options: SamplingOptions = SamplingOptions()
    objective: Objective = field(default_factory=Objective)
    """The deadline is that of the last token."""
    first_token_by: float | None = None
    """Deadline of the first token, in seconds of the monotonic clock; None for none."""
    min_quality_worst: float = 0.0
    """What every kind of question must keep of full at least, in 0..1."""
    plan: Plan | None = None
    """The plan that the client or the settings pin; None leaves the choice to the policy."""
    may_shorten: bool = False
    """Whether the policy may generate fewer tokens than `max_tokens` to be in time."""
    bypass_cache: bool = False
    """Use nothing that was computed for another chat, and keep nothing of this one."""

    @property
    def size_bytes(self) -> int:
        """Memory that the decoded pictures hold while the call waits."""
        return sum(picture.size_bytes for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class CachedParts:
    """What of a chat was computed for an earlier one."""

    features: int = 0
    """Pictures whose features were cached."""
    pictures: int = 0
    """Pictures at the beginning of the prompt whose keys and values were cached."""
    tokens: int = 0
    """Tokens at the beginning of the prompt whose keys and values were cached."""


NOTHING_CACHED = CachedParts()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the logarithm of its probability."""

    token: str
    """Its text; bytes that are no whole character are written as \\xNN."""
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """The first event of an answer, just ahead of its first token."""

    plan: Plan
    quality: float | None
    """The plan's measured quality; None if never measured."""
    reason: Reason
    text_tokens: int
    """Tokens of the prompt that are not visual."""
    visual_tokens: int
    cached_tokens: int
    """Tokens of the prompt whose keys and values were in the cache."""
    max_tokens: int
    """Tokens of the answer at most: fewer than asked for if the policy shortened it, or if no more fit."""
    queue_s: float
    """Seconds from admission to the first step for it: the encoding of its pictures, or its prefill."""
    first_token_s: float
    """Seconds from admission to the first token."""


@dataclass(frozen=True, slots=True)
class ChatToken:
    """The next token of an answer."""

    text: str
    """What it adds to the text. May be empty: within a character, or where a stop text may have begun."""
    logprob: TokenLogprob | None
    """None for the end mark."""
    alternatives: tuple[TokenLogprob, ...] = ()
    """The most probable tokens, the first ahead."""


@dataclass(frozen=True, slots=True)
class ChatEnded:
    """The last event of an answer."""

    finish: FinishReason
    answer_tokens: int
    """Tokens of the answer, the end mark included."""
    gflops: float
    """Billions of multiply-adds that the whole answer took; what came from a cache is not counted."""
    total_s: float
    """Seconds from admission to the last token."""


ChatEvent = ChatStarted | ChatToken | ChatEnded
"""An answer is one ChatStarted, ChatTokens, and one ChatEnded. An error may be raised in the place of any."""
