"""A vision-language model: patch features, a projector, and a decoder that reads visual tokens and text."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.vlm.decoder import DecoderSpec, build_decoder
from foveate.models.vlm.decoder_layers import run_layers
from foveate.models.vlm.key_value_cache import CacheRows
from foveate.models.vlm.projector import Projector, ProjectorSpec


class VisionLanguageModel(nn.Module):
    """The parts behind the vision tower."""

    def __init__(self, projector: ProjectorSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        self.projector = Projector(projector)
        self.decoder: Any = build_decoder(decoder)

    @property
    def embeddings(self) -> Tensor:
        """The embeddings of the vocabulary: (V, D)."""
        weight: Tensor = self.decoder.model.embed_tokens.weight
        return weight

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (B, T) to embeddings (B, T, D)."""
        return F.embedding(ids, self.embeddings)

    def hidden(self, embedded: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """The last hidden states (B, L, D) of embeddings (B, L, D), without a cache.

        positions: (B, L). mask: (B, 1, L, L) bool, where row i may see column j.
        """
        output = self.decoder.model(
            inputs_embeds=embedded, position_ids=positions, attention_mask=mask, use_cache=False
        )
        states: Tensor = output.last_hidden_state
        return states

    def extend(self, embedded: Tensor, positions: Tensor, rows: CacheRows) -> Tensor:
        """The last hidden states (B, Q, D) of new tokens behind those in a key/value cache.

        embedded: (B, Q, D), rows padded at their ends. positions: (B, Q). The cache gets the new tokens.
        """
        states = run_layers(self.decoder.model, embedded, positions, rows)
        rows.commit()
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary (..., V) of hidden states (..., D)."""
        return torch.matmul(hidden, self.embeddings.to(hidden.dtype).T)
