"""Generation of answers: a prefill of prompts, then steps that each add one token to every sequence.

Both are calls on a batch of sequences and a key/value cache. What a sequence is given never depends on the
others of its batch, so that a scheduler may let sequences join and leave between any two steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveate.models.vlm.key_value_cache import KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.prompt import ChatPrompt, check_fits
from foveate.models.vlm.sampling import choose
from foveate.models.vlm.sequence import AnswerPiece, ChatSequence


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
