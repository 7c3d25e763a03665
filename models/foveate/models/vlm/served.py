"""What serving adds to a vision-language model: prefill in parts, slots to free and to compact, prefixes."""

from collections.abc import Sequence
from functools import cached_property

from foveate.core.chat import SamplingOptions, TokenLogprob, Turn
from foveate.core.errors import ContextTooLong
from foveate.core.plan import Plan
from foveate.models.layers.visual_tokens import Compression
from foveate.models.vlm import generation
from foveate.models.vlm.constraints import ConstraintCompiler
from foveate.models.vlm.key_value_cache import CachedPrefix, KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.prompt import behind_picture, check_fits
from foveate.models.vlm.sampling import TokenChoice
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence
from foveate.models.vlm.tokenizer import END, IMAGE, ChatTokenizer

TOKEN_BYTES = 64
"""A text that has more bytes for each token of a slot is not even encoded. Few tokens have so many."""


class ServedChat:
    """The part of `ChatRunner` that works on sequences and on the slots of its key/value cache."""

    model: VisionLanguageModel
    cache: KeyValueCache
    tokenizer: ChatTokenizer
    constraints: ConstraintCompiler
    picture_token = IMAGE
    """The token that stands for a picture in what `read` returns."""

    def method(self, plan: Plan) -> Compression:
        """The compression method of a plan. Raises BadPlan when this model cannot run it."""
        raise NotImplementedError

    @property
    def slots(self) -> int:
        """Sequences at once."""
        return self.cache.shape.slots

    @property
    def free_slots(self) -> int:
        """Slots that no sequence has."""
        return self.cache.free_slots

    @property
    def slot_tokens(self) -> int:
        """Tokens that a slot can hold."""
        return self.cache.shape.length

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of all slots, which are allocated at the start."""
        return self.cache.shape.bytes(self.cache.keys.dtype)

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of the keys and values of the tokens in slots."""
        return sum(self.cache.lengths) * self.cache.shape.bytes_per_token(self.cache.keys.dtype)

    def visual_count(self, plan: Plan) -> int:
        """Visual tokens of a picture under a plan."""
        return self.method(plan).count

    def is_blind(self, plan: Plan) -> bool:
        """Whether the visual tokens of a picture are the same for all questions."""
        return not self.method(plan).needs_question

    @cached_property
    def _token_bytes(self) -> int:
        """Bytes that a token has at most."""
        words = self.tokenizer
        return max(TOKEN_BYTES, *(len(words.token_bytes(token)) for token in range(len(words))))

    def read(self, turns: Sequence[Turn], options: SamplingOptions) -> list[int]:
        """The tokens of a chat, with `picture_token` for each picture. May be called from any thread.

        options: what takes time to prepare of them is prepared here, off the thread of the steps.
        Raises ContextTooLong for a text that fits no slot, before it is encoded, BadRequest for a bad JSON
        schema, and as `ChatTokenizer.encode`.
        """
        texts = sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str))
        if texts > self._token_bytes * self.slot_tokens:
            raise ContextTooLong(
                f"the chat has {texts} characters, more than this model takes: it takes "
                f"{self.slot_tokens - 1} tokens"
            )
        if options.json_schema:
            self.constraints.compile(options.json_schema)  # kept, so that `sequence` has it at once
        return self.tokenizer.chat(turns)

    def check_length(self, ids: Sequence[int], plan: Plan) -> None:
        """Raise ContextTooLong for the tokens of a chat that do not fit a slot under a plan."""
        pictures = sum(token == IMAGE for token in ids)
        visual = pictures * self.visual_count(plan)
        check_fits(len(ids) - pictures + visual, visual, self.cache)

    def prefill(
        self, sequences: Sequence[ChatSequence], counts: Sequence[int] | None = None
    ) -> list[AnswerPiece | None]:
        """Start answers, or a part of their prompts. See `generation.start_parts`.

        counts: tokens of each prompt; None for all that are left.
        """
        counts = counts or [sequence.unfilled for sequence in sequences]
        return generation.start_parts(self.model, self.cache, sequences, counts)

    def decode(self, sequences: Sequence[ChatSequence]) -> list[AnswerPiece]:
        """Add one token to each answer. See `generation.step`."""
        return generation.step(self.model, self.cache, sequences)

    def cancel(self, sequences: Sequence[ChatSequence]) -> None:
        """Free the slots of sequences that have one."""
        for sequence in sequences:
            generation.cancel(self.cache, sequence)

    def compact(self, sequences: Sequence[ChatSequence]) -> None:
        """Move sequences, all that have a slot, to the first slots. A step then reads them without a copy."""
        moved = self.cache.compact()
        for sequence in sequences:
            sequence.slot = moved.get(sequence.slot, sequence.slot)

    def read_prefix(self, sequence: ChatSequence, ids: Sequence[int], plan: Plan) -> CachedPrefix:
        """A copy of the keys and values of a prefilled prompt, up to the end of its last picture.

        ids: the tokens of its chat, with at least one picture.
        """
        pictures = sum(token == IMAGE for token in ids)
        text = behind_picture(ids, pictures) - pictures
        return self.cache.read(sequence.slot, text + pictures * self.visual_count(plan), pictures)

    def logprobs(self, choice: TokenChoice) -> tuple[TokenLogprob | None, tuple[TokenLogprob, ...]]:
        """A token and its alternatives as texts. None for the end mark, which has none."""
        chosen = None if choice.token == END else self._logprob(choice.token, choice.logprob)
        return chosen, tuple(self._logprob(token, logprob) for token, logprob in choice.alternatives)

    def _logprob(self, token: int, logprob: float) -> TokenLogprob:
        data = self.tokenizer.token_bytes(token)
        return TokenLogprob(data.decode("utf-8", "backslashreplace"), data, logprob)
