"""The prompt of a chat: embeddings of its text, with visual tokens in the places of its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadRequest, ContextTooLong
from foveate.models.vlm.key_value_cache import CachedPrefix, KeyValueCache
from foveate.models.vlm.model import VisionLanguageModel
from foveate.models.vlm.tokenizer import IMAGE


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


def check_fits(tokens: int, visual_tokens: int, cache: KeyValueCache) -> None:
    """Raise ContextTooLong for a prompt of so many tokens that leaves no room for an answer in a slot."""
    if tokens >= cache.shape.length:
        raise ContextTooLong(
            f"the chat has {tokens} tokens, {visual_tokens} of them visual, and this model takes "
            f"{cache.shape.length - 1}: shorten the text, or use a plan with fewer visual tokens"
        )
