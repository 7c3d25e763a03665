"""The layers of a decoder behind a key/value cache, beside transformers' own forward."""

import pytest
import torch

from tests.support import chat_sequences
from tests.support.torchvision_ops import import_transformers

transformers = import_transformers()
pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
WIDTH = 32


def test_states_equal_those_of_transformers() -> None:
    model, cache = chat_sequences.model(), chat_sequences.slots(3)
    lengths, position = (9, 5, 7), 9
    slots = [cache.allocate() for _ in lengths]
    embedded = torch.randn(3, position + 2, WIDTH, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(position).expand(3, -1)
    prompt = model.extend(embedded[:, :position], positions, cache.rows(slots, lengths))
    step = [
        model.extend(
            embedded[:, position + number, None],
            torch.tensor(lengths)[:, None] + number,
            cache.rows(slots, [1, 1, 1]),
        )
        for number in range(2)
    ]
    for row, length in enumerate(lengths):
        alone = torch.cat([embedded[row, :length], embedded[row, position:]])[None]
        mask = torch.ones(1, 1, length + 2, length + 2, dtype=torch.bool).tril()
        expected = model.hidden(alone, torch.arange(length + 2)[None], mask)[0]
        torch.testing.assert_close(prompt[row, :length], expected[:length], rtol=1e-4, atol=1e-5)
        for number in range(2):
            torch.testing.assert_close(step[number][row, 0], expected[length + number], rtol=1e-4, atol=1e-5)
