"""Random tokens at the token counts of a reducer: what the reducer's choice of tokens is worth."""

import torch

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.packing import keep_padded
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens


class RandomTokens(Reducer):
    """At the blocks of another reducer, as many tokens stay as there, drawn at random for each image.

    For a reducer whose count differs between images, it is the count that this reducer would choose for the
    random tokens.
    """

    def __init__(self, reducer: Reducer, config: ViTConfig, seed: int = 0) -> None:
        self.reducer, self.config = reducer, config
        self.proportional, self.adaptive = reducer.proportional, reducer.adaptive
        self.generator = torch.Generator().manual_seed(seed)

    def needs(self, block: int) -> Needs | None:
        """The needs of the other reducer where its counts depend on them, else no attention."""
        needs = self.reducer.needs(block)
        return needs if needs is None or self.adaptive else Needs.NOTHING

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """The counts of the other reducer."""
        return self.reducer.after(tokens, prefix, depth)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep random patch tokens, in image order."""
        present = tokens.counts[:, tokens.prefix :] > 0
        if self.adaptive:
            staying = tokens.apply(self.reducer(tokens, attention, block)).present
        else:
            entering = tokens.source.shape[1] + tokens.prefix
            staying = torch.tensor(self.after(entering, tokens.prefix, self.config.depth)[block])
        drawn = torch.rand(present.shape, generator=self.generator).to(present.device)
        rank = drawn.masked_fill(~present, 2).argsort(1).argsort(1)
        chosen = rank < (staying.to(present.device) - tokens.prefix).reshape(-1, 1)
        return keep_padded(chosen & present, tokens.prefix, tokens.counts)
