"""The protocol between the chat engine and a vision-language model. `ChatRunner` of models satisfies it."""

from collections.abc import Sequence
from typing import Any, Protocol

from foveate.core.chat import CachedParts, GenerationEnd, SamplingOptions, TokenLogprob, Turn
from foveate.core.errors import FoveateError
from foveate.core.model import ModelCard
from foveate.core.plan import Plan


class HasBytes(Protocol):
    """A value that a cache can keep: features of a picture, or keys and values of a prefix."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        ...


class KeptPrefix(HasBytes, Protocol):
    """Keys and values of the beginning of a prompt, up to the end of a picture."""

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def cut(self, tokens: int, pictures: int) -> "KeptPrefix":
        """The first tokens of it, which hold this number of pictures."""
        ...


class TokenPiece(Protocol):
    """What a step adds to an answer."""

    @property
    def text(self) -> str:
        """What is new of the text; may be empty."""
        ...

    @property
    def choice(self) -> Any:
        """The token, for `ChatModel.logprobs`; None where the answer failed."""
        ...

    @property
    def finish(self) -> GenerationEnd | None:
        """Why the answer ends with this piece; None while it goes on."""
        ...


class AnswerState(Protocol):
    """An answer while it is generated."""

    slot: int
    """The slot of the key/value cache; below 0 for none."""
    max_tokens: int
    """Tokens of the answer at most."""

    @property
    def unfilled(self) -> int:
        """Tokens of the prompt that are not in the slot yet."""
        ...

    @property
    def divisible(self) -> bool:
        """Whether the prompt can be prefilled in parts."""
        ...

    @property
    def finish(self) -> GenerationEnd | None:
        """Why the answer has ended; None while it goes on."""
        ...

    @property
    def error(self) -> FoveateError | None:
        """Why the answer failed, once it has."""
        ...


class AnswerCost(Protocol):
    """The cost of an answer."""

    @property
    def total(self) -> float:
        """Billions of multiply-adds."""
        ...


class ChatModel(Protocol):
    """Runs the steps of answers. One thread at a time calls it, except for `read` and what is cheap.

    The engine passes what these methods return from one to the next. It reads only what the protocols above
    name.
    """

    @property
    def card(self) -> ModelCard:
        """The name and the ladder of the model."""
        ...

    @property
    def max_batch(self) -> int:
        """Pictures that are encoded at once, at most."""
        ...

    @property
    def picture_token(self) -> int:
        """The token that stands for a picture in what `read` returns."""
        ...

    @property
    def slots(self) -> int:
        """Answers at once."""
        ...

    @property
    def free_slots(self) -> int:
        """Slots that no answer has."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of all slots."""
        ...

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of the keys and values of the tokens in slots."""
        ...

    def check(self, plan: Plan) -> None:
        """Raises BadPlan if this model cannot run the plan."""
        ...

    def visual_count(self, plan: Plan) -> int:
        """Visual tokens of a picture under a plan."""
        ...

    def encoding(self, plan: Plan) -> str:
        """Plans with an equal text encode pictures alike."""
        ...

    def is_blind(self, plan: Plan) -> bool:
        """Whether the visual tokens of a picture are the same for all questions."""
        ...

    def read(self, turns: Sequence[Turn], options: SamplingOptions) -> Sequence[int]:
        """The tokens of a chat, one for each picture, and whatever takes time to prepare of its options.

        Any thread may call it. Raises BadRequest.
        """
        ...

    def check_length(self, ids: Sequence[int], plan: Plan) -> None:
        """Raises BadRequest for tokens that do not fit a slot under a plan."""
        ...

    def stack(self, media: Sequence[Any], plan: Plan) -> Any:
        """Decoded pictures as the input of `encode`."""
        ...

    def encode(self, batch: Any, plan: Plan) -> Sequence[HasBytes]:
        """The features of stacked pictures."""
        ...

    def visual_tokens(self, pictures: Sequence[Any], plan: Plan, questions: Sequence[str]) -> Sequence[Any]:
        """The visual tokens of pictures, each with its question."""
        ...

    def prompt_of(self, ids: Sequence[int], visual: Sequence[Any], prefix: Any = None) -> Any:
        """The prompt of tokens. prefix: its beginning; `visual` are the pictures behind it."""
        ...

    def sequence(self, prompt: Any, options: SamplingOptions) -> AnswerState:
        """The answer to a prompt, before its first token."""
        ...

    def prefill(self, sequences: Sequence[Any], counts: Sequence[int]) -> Sequence[TokenPiece | None]:
        """Prefill the next tokens of prompts; the first tokens of the answers whose prompts are complete."""
        ...

    def decode(self, sequences: Sequence[Any]) -> Sequence[TokenPiece]:
        """Add one token to each answer. The slots of those that end are free. A failure changes nothing."""
        ...

    def cancel(self, sequences: Sequence[Any]) -> None:
        """Free the slots of these answers, if they have any."""
        ...

    def compact(self, sequences: Sequence[Any]) -> None:
        """Move the answers, all that have a slot, to the first slots, so that a step reads no copy."""
        ...

    def read_prefix(self, sequence: Any, ids: Sequence[int], plan: Plan) -> KeptPrefix:
        """A copy of the keys and values of a prompt, up to the end of its last picture."""
        ...

    def logprobs(self, choice: Any) -> tuple[TokenLogprob | None, tuple[TokenLogprob, ...]]:
        """A token and its alternatives as texts; None for the end mark."""
        ...

    def cost(
        self, plan: Plan, text_tokens: int, pictures: int, answer_tokens: int, cached: CachedParts
    ) -> AnswerCost:
        """The multiply-adds of an answer."""
        ...
