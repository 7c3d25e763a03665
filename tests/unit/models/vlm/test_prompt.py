"""Prompts: the places of pictures, parts of a prompt, masks, and prompts that do not fit."""

from typing import Any

import pytest
import torch

from foveate.core.errors import BadRequest
from foveate.models.vlm.generation import decode, generate, prefill
from foveate.models.vlm.prompt import ChatPrompt, build_prompt
from tests.support.chat_sequences import CHATS, model, prompt, sequence, slots, visual, words
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_pictures_have_their_places() -> None:
    ids = words().chat(CHATS["two pictures"][0])
    with pytest.raises(BadRequest, match="names 2 pictures, and 1 were given"):
        build_prompt(model(), ids, visual((4,)))
    given = prompt("two pictures")
    assert given.positions[:54].tolist() == [0, *[1] * 49, *[2] * 4]
    assert given.positions[54:].tolist() == list(range(3, 3 + len(given) - 54))
    assert given.visual_tokens == 53


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    given = prompt("one picture")
    shared = slots(2, len(given))
    with pytest.raises(BadRequest, match=f"has {len(given)} tokens, 16 of them visual, and this model takes"):
        generate(model(), shared, [sequence("one picture")])
    assert shared.free_slots == 2


def test_a_prompt_may_be_prefilled_in_parts() -> None:
    given, shared = prompt("two pictures"), slots(2)
    whole = prefill(model(), shared, [given], [0])
    other = prompt("one picture")
    parts = [ChatPrompt(given.embedded[a:b], given.positions[a:b], 0) for a, b in ((0, 30), (30, len(given)))]
    prefill(model(), shared, parts[:1], [1])
    own = slots(2)
    prefill(model(), own, parts[:1], [1])
    mixed = prefill(model(), own, [other, parts[1]], [0, 1])
    torch.testing.assert_close(mixed[1], whole[0], rtol=0, atol=1e-4)
    alone = prefill(model(), slots(1), [other], [0])
    torch.testing.assert_close(mixed[0], alone[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(prefill(model(), shared, parts[1:], [1]), whole, rtol=0, atol=1e-4)


def test_a_mask_that_counts_copies_equals_copies() -> None:
    """The text sees a token with the logarithm of 3 added to its scores as three equal tokens."""
    text = prompt("no picture")
    length = len(text) + 1
    embedded = torch.cat([visual((1,))[0], text.embedded])
    positions = torch.arange(length)
    copies = torch.tensor([3, *[1] * len(text)])
    expanded = ChatPrompt(embedded.repeat_interleave(copies, 0), positions.repeat_interleave(copies), 3)
    mask = torch.zeros(length, length).masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
    mask[1:, 0] = torch.tensor(3.0).log()
    counted = ChatPrompt(embedded, positions, 1, mask)
    own, shared = slots(1), slots(2)
    scores = prefill(model(), own, [expanded], [0])
    both = prefill(model(), shared, [prompt("several turns"), counted], [0, 1])
    torch.testing.assert_close(both[1], scores[0], rtol=0, atol=1e-4)
    scores = decode(model(), own, [30], [length], [0])
    both = decode(model(), shared, [30, 30], [60, length], [0, 1])
    torch.testing.assert_close(both[1], scores[0], rtol=0, atol=1e-4)
    plain = ChatPrompt(embedded, positions, 1)
    assert not torch.allclose(
        prefill(model(), slots(1), [plain], [0])[0], prefill(model(), slots(1), [counted], [0])[0]
    )
    # A row without a mask is not changed by one that has it.
    alone = slots(1)
    prefill(model(), alone, [prompt("several turns")], [0])
    torch.testing.assert_close(both[0], decode(model(), alone, [30], [60], [0])[0], rtol=0, atol=1e-4)
