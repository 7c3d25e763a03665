"""Generation of answers: a prefill of prompts, then steps that each add one token to every sequence.

Both are calls on a batch of sequences and a key/value cache. What a sequence is given never depends on the
others of its batch, so that a scheduler may let sequences join and leave between any two steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveate.core.chat import FinishReason, SamplingOptions
from foveate.core.errors import BadRequest, RunFailed
from foveate.models.vlm.constraints import JsonConstraint
from foveate.models.vlm.key_value_cache import CachedPrefix, KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.sampling import Sampler, TokenChoice, choose
from foveate.models.vlm.text_stream import TextStream
from foveate.models.vlm.tokenizer import END, IMAGE, ChatTokenizer


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The input of a decoder before an answer."""

    embedded: Tensor
    """(L, D): embeddings of text, with visual tokens in the places of pictures."""
    positions: Tensor
    """(L,) int64: rotary positions. All visual tokens of a picture share one."""
    visual_tokens: int
    """Number of visual tokens, those of the prefix included."""
    mask: Tensor | None = None
    """(L, L) float32: what is added to attention scores in place of the causal mask. The answer's tokens see
    the prompt as its last token does. None: the causal mask."""
    prefix: CachedPrefix | None = None
    """What comes before the L tokens, if it was computed before."""

    def __len__(self) -> int:
        return len(self.positions) + self.cached_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else len(self.prefix)

    def part(self, first: int, count: int) -> "ChatPrompt":
        """Some of the L tokens, as a prompt behind the others. A prompt with a mask has no smaller parts."""
        if count == len(self.positions):
            return self
        if self.mask is not None:
            raise ValueError("a prompt with a mask runs as a whole")
        return ChatPrompt(self.embedded[first : first + count], self.positions[first : first + count], 0)

    @property
    def next_position(self) -> int:
        """The rotary position of the first token of the answer."""
        return int(self.positions[-1]) + 1


@torch.inference_mode()
def build_prompt(
    model: VisionLanguageModel,
    ids: Sequence[int],
    visual: Sequence[Tensor],
    prefix: CachedPrefix | None = None,
) -> ChatPrompt:
    """The prompt of tokens `ids`, in which the visual tokens (K, D) of each picture replace one IMAGE token.

    prefix: the beginning of the prompt; `visual` are the pictures behind it. Raises BadRequest unless there
    are as many IMAGE tokens as pictures.
    """
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    pictures = 0 if prefix is None else prefix.pictures
    if len(places) != len(visual) + pictures:
        raise BadRequest(f"the chat names {len(places)} pictures, and {len(visual) + pictures} were given")
    skipped = behind_picture(ids, pictures)
    embedded = model.embed(torch.tensor(ids[skipped:], device=model.embeddings.device))
    parts: list[Tensor] = []
    repeats = torch.ones(len(embedded), dtype=torch.int64)
    first = 0
    for place, tokens in zip((place - skipped for place in places[pictures:]), visual, strict=True):
        parts += [embedded[first:place], tokens.to(embedded)]
        repeats[place] = len(tokens)
        first = place + 1
    positions = torch.arange(skipped, len(ids)).repeat_interleave(repeats)
    joined = torch.cat([*parts, embedded[first:]])
    cached = 0 if prefix is None else len(prefix) - (skipped - pictures)
    count = cached + sum(map(len, visual))
    return ChatPrompt(joined, positions.to(joined.device), count, prefix=prefix)


def behind_picture(ids: Sequence[int], number: int) -> int:
    """The place in `ids` right behind the picture of this number, counted from 1; 0 for number 0."""
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    return places[number - 1] + 1 if number else 0


@torch.inference_mode()
def prefill(
    model: VisionLanguageModel, cache: KeyValueCache, prompts: Sequence[ChatPrompt], slots: Sequence[int]
) -> Tensor:
    """Put prompts into slots of the cache, behind what these hold. Returns scores (B, V) of the next tokens.

    Prompts of different lengths run as one batch, padded to the longest.
    """
    counts = [len(prompt.positions) for prompt in prompts]
    rows = cache.rows(slots, counts, [prompt.mask for prompt in prompts])
    embedded = pad_sequence([prompt.embedded for prompt in prompts], batch_first=True)
    positions = pad_sequence([prompt.positions for prompt in prompts], batch_first=True)
    hidden = model.extend(embedded, positions, rows)
    last = torch.tensor(counts, device=hidden.device) - 1
    return model.logits(hidden[torch.arange(len(counts), device=hidden.device), last])


@torch.inference_mode()
def decode(
    model: VisionLanguageModel,
    cache: KeyValueCache,
    tokens: Sequence[int],
    positions: Sequence[int],
    slots: Sequence[int],
) -> Tensor:
    """Add one token to the sequence in each slot. Returns scores (B, V) of the tokens after them.

    positions: the rotary positions of the tokens.
    """
    rows = cache.rows(slots, [1] * len(slots))
    device = model.embeddings.device
    embedded = model.embed(torch.tensor(tokens, device=device)[:, None])
    hidden = model.extend(embedded, torch.tensor(positions, device=device)[:, None], rows)
    return model.logits(hidden[:, 0])


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """What one step adds to an answer."""

    text: str
    """May be empty: within a character, or where a stop text may have begun."""
    choice: TokenChoice | None
    """The token; None where the sequence failed."""
    finish: FinishReason | None
    """Why the answer ends with this piece; None while it goes on."""


class ChatSequence:
    """One answer while it is generated: all of its state outside the key/value cache."""

    def __init__(
        self,
        prompt: ChatPrompt,
        options: SamplingOptions,
        tokenizer: ChatTokenizer,
        constraint: JsonConstraint | None = None,
    ) -> None:
        """constraint: decides which tokens may come next; None allows all."""
        self.prompt = prompt
        self.max_tokens = options.max_tokens
        self.slot = -1
        """The slot of the cache; -1 before the prefill and after the end."""
        self.prefilled = 0
        """Tokens of the prompt that are in the slot, without its cached prefix."""
        self.choices: list[TokenChoice] = []
        """The tokens of the answer, the end mark included."""
        self.finish: FinishReason | None = None
        self.error: RunFailed | None = None
        self.sampler = Sampler(options, constraint)
        self._stream = TextStream(tokenizer, options.stop)

    @property
    def unfilled(self) -> int:
        """Tokens of the prompt that are not in the slot yet."""
        return len(self.prompt.positions) - self.prefilled

    @property
    def divisible(self) -> bool:
        """Whether the prompt can be prefilled in parts."""
        return self.prompt.mask is None

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._stream.text

    @property
    def position(self) -> int:
        """The rotary position of the last token of the answer."""
        return self.prompt.next_position + len(self.choices) - 1

    def accept(self, choice: TokenChoice | RunFailed) -> AnswerPiece:
        """Add the next token, or fail. Returns what is new."""
        if isinstance(choice, RunFailed):
            self.error, self.finish = choice, "error"
            return AnswerPiece("", None, self.finish)
        self.choices.append(choice)
        text = ""
        if choice.token == END:
            self.finish = "stop"
        else:
            text = self._stream.push(choice.token)
            if self._stream.stopped:
                self.finish = "stop"
            elif len(self.choices) >= self.max_tokens:
                self.finish = "length"
        if self.finish is not None:
            text += self._stream.end()
        return AnswerPiece(text, choice, self.finish)


def start(
    model: VisionLanguageModel, cache: KeyValueCache, sequences: Sequence[ChatSequence]
) -> list[AnswerPiece]:
    """Prefill new sequences, each in a slot of its own, and choose their first tokens.

    The slots of sequences that end at once are free again. Raises BadRequest for a prompt that does not fit a
    slot, and Overloaded where there are too few free slots; then nothing has changed.
    """
    pieces = start_parts(model, cache, sequences, [sequence.unfilled for sequence in sequences])
    return [piece for piece in pieces if piece is not None]


def start_parts(
    model: VisionLanguageModel, cache: KeyValueCache, sequences: Sequence[ChatSequence], counts: Sequence[int]
) -> list[AnswerPiece | None]:
    """Prefill the next `counts` tokens of sequences, the first ones in a new slot, behind a cached prefix.

    Returns the first token of each sequence whose prompt is complete now, and None for the others. Raises as
    `start` does.
    """
    for sequence in sequences:
        check_fits(len(sequence.prompt), sequence.prompt.visual_tokens, cache)
    new = [sequence for sequence in sequences if sequence.slot < 0]
    lengths = {each.slot: cache.lengths[each.slot] for each in sequences if each.slot >= 0}
    try:
        for sequence in new:
            sequence.slot, prefix = cache.allocate(), sequence.prompt.prefix
            if prefix is not None:
                cache.write(sequence.slot, prefix)
        parts = [s.prompt.part(s.prefilled, count) for s, count in zip(sequences, counts, strict=True)]
        logits = prefill(model, cache, parts, [sequence.slot for sequence in sequences])
    except Exception:
        for sequence in new:
            cancel(cache, sequence)
        for slot, length in lengths.items():
            cache.lengths[slot] = length
        raise
    for sequence, count in zip(sequences, counts, strict=True):
        sequence.prefilled += count
        room = cache.shape.length - len(sequence.prompt)
        sequence.max_tokens = min(sequence.max_tokens, room)
    complete = [row for row, sequence in enumerate(sequences) if not sequence.unfilled]
    pieces = iter(_accept(cache, [sequences[row] for row in complete], logits[complete]))
    return [None if sequence.unfilled else next(pieces) for sequence in sequences]


def step(
    model: VisionLanguageModel, cache: KeyValueCache, sequences: Sequence[ChatSequence]
) -> list[AnswerPiece]:
    """One more token for each sequence that was started and goes on. Slots of those that end are free.

    If the forward fails, nothing has changed.
    """
    slots = [sequence.slot for sequence in sequences]
    lengths = [cache.lengths[slot] for slot in slots]
    try:
        tokens = [sequence.choices[-1].token for sequence in sequences]
        logits = decode(model, cache, tokens, [sequence.position for sequence in sequences], slots)
    except Exception:
        for slot, length in zip(slots, lengths, strict=True):
            cache.lengths[slot] = length
        raise
    return _accept(cache, sequences, logits)


def cancel(cache: KeyValueCache, sequence: ChatSequence) -> None:
    """Free the slot of a sequence, if it has one."""
    if sequence.slot >= 0:
        cache.free(sequence.slot)
        sequence.slot = -1


def check_fits(tokens: int, visual_tokens: int, cache: KeyValueCache) -> None:
    """Raise BadRequest for a prompt of so many tokens that leaves no room for an answer in a slot."""
    if tokens >= cache.shape.length:
        raise BadRequest(
            f"the chat has {tokens} tokens, {visual_tokens} of them visual, and this model takes "
            f"{cache.shape.length - 1}: shorten the text, or use a plan with fewer visual tokens"
        )


def generate(
    model: VisionLanguageModel,
    cache: KeyValueCache,
    sequences: Sequence[ChatSequence],
    on_piece: Callable[[ChatSequence, AnswerPiece], None] | None = None,
) -> None:
    """Run sequences to their ends in one batch. on_piece gets each piece as soon as it is known.

    Raises as `start` does.
    """
    running = list(sequences)
    try:
        pieces = start(model, cache, running) if running else []
        while running:
            for sequence, piece in zip(running, pieces, strict=True):
                if on_piece is not None:
                    on_piece(sequence, piece)
            running = [sequence for sequence in running if sequence.finish is None]
            pieces = step(model, cache, running) if running else []
    finally:
        for sequence in running:
            cancel(cache, sequence)


def _accept(cache: KeyValueCache, sequences: Sequence[ChatSequence], logits: Tensor) -> list[AnswerPiece]:
    """Choose the next tokens from scores (B, V), and free the slots of sequences that end."""
    choices = choose(logits, [sequence.sampler for sequence in sequences])
    pieces = [sequence.accept(choice) for sequence, choice in zip(sequences, choices, strict=True)]
    for sequence in sequences:
        if sequence.finish is not None:
            cancel(cache, sequence)
    return pieces
