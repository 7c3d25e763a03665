"""The model: with and without a key/value cache it computes the same."""

import pytest
import torch

from foveate.models.vlm.key_value_cache import CacheShape, KeyValueCache
from tests.support import chat_models

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_hidden_states_are_the_same_with_a_cache() -> None:
    model = chat_models.model(300)
    embedded, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, -1)
    causal = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril().expand(2, -1, -1, -1)
    expected = model.hidden(embedded, positions, causal)
    cache = KeyValueCache(CacheShape.of(chat_models.decoder_spec(300), 2, 9))
    parts = []
    for first, last in ((0, 5), (5, 8), (8, 9)):
        rows = cache.rows([0, 1], [last - first] * 2)
        parts.append(model.extend(embedded[:, first:last], positions[:, first:last], rows))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-4)
    assert model.logits(expected).shape == (2, 9, 300)


def test_scores_are_those_of_transformers() -> None:
    model = chat_models.model(300)
    ids = torch.randint(6, 300, (2, 7))
    positions = torch.arange(7).expand(2, -1)
    causal = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril().expand(2, -1, -1, -1)
    own = model.logits(model.hidden(model.embed(ids), positions, causal))
    torch.testing.assert_close(own, model.decoder(ids).logits, rtol=0, atol=1e-4)
