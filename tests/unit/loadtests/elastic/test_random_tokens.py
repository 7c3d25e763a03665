"""Reducers against random tokens at their own counts, mostly on a network without training for budgets."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.models.layers.reducer import Reducer
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from foveate.models.weights import checkpoint as disk
from foveate.models.weights import hub
from foveate.models.zoo.heldout import heldout
from loadtests.elastic.budgets import closest, gflops
from loadtests.elastic.random_tokens import RandomTokens

PLAIN = Path(__file__).parents[4] / "models/training/vit-xs-plain.safetensors"
SHARE = 0.6
EVERY = 10
"""Every tenth held-out scene: 104 of 1,040."""

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@cache
def network(name: str) -> ElasticViT:
    return (disk.read(PLAIN) if name == "plain" else hub.load("vit-xs")).model.float().eval()


@cache
def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (N, 3, 224, 224) and their classes (N,)."""
    shipped = heldout()
    pixels = np.stack([image for i, image in enumerate(shipped.pixels(224)) if i % EVERY == 0])
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    return images, torch.from_numpy(np.asarray(shipped.targets[::EVERY]))


def top1(model: ElasticViT, reducer: Reducer) -> float:
    images, classes = scenes()
    correct = 0
    for first in range(0, len(images), 26):
        out: TrunkOutput = model(images[first : first + 26], ResolvedPlan(reducer, model.config.depth))
        correct += int((out.logits.argmax(1) == classes[first : first + 26]).sum())
    return correct / len(images)


def at_share(model: ElasticViT, name: str) -> Reducer:
    spec = closest(model, name, SHARE * gflops(model, "none", 224), 224)
    assert spec is not None
    return create(spec, model)


@pytest.mark.parametrize("name", ["evit", "ats", "diffrate", "zerotprune", "tome", "mctf", "gtp"])
def test_every_reducer_beats_random_tokens_at_its_counts(name: str) -> None:
    model = network("plain")
    reducer = at_share(model, name)
    assert top1(model, reducer) > top1(model, RandomTokens(reducer, model.config))


def test_gates_beat_random_tokens_at_their_counts() -> None:
    model = network("vit-xs")
    reducer = at_share(model, "iared")
    assert top1(model, reducer) > top1(model, RandomTokens(reducer, model.config))


def test_zerotprune_is_as_good_as_tome_on_a_network_that_was_not_trained_for_it() -> None:
    """Early layers of a plainly trained network rank tokens no better than chance, so none may rank there."""
    model = network("plain")
    assert top1(model, at_share(model, "zerotprune")) >= top1(model, at_share(model, "tome")) - 0.02


@pytest.mark.parametrize("text", ["evit:0.5", "tome:16", "ats:0.5", "mctf:20"])
def test_random_tokens_have_the_counts_of_the_reducer(text: str) -> None:
    model = network("plain")
    reducer, tokens = create(text, model), model.embed(scenes()[0][:3])
    random, counts = RandomTokens(reducer, model.config), []
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, random, index)
        counts.append(len(tokens))
        assert (tokens.origin[:, 0] == 0).all()
    expected = reducer.after(197, 1, model.config.depth)
    assert all(n <= most for n, most in zip(counts, expected, strict=True))
    assert reducer.adaptive or tuple(counts) == expected
    patches = [set(row.nonzero()[:, 0].tolist()) for row in tokens.source >= 0]
    assert patches[0] != patches[1] != patches[2]
