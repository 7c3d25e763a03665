"""Patch features of the dense head (kept, merged, dropped, clustered), and segmentation results."""

import math

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import reduction
from foveate.models.heads.dense import STRIDE, DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens
from foveate.models.reduction.expedit import cluster
from foveate.models.runners.dense import class_maps, dense_of, encode, represented, segment
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.zoo import CheckpointCard

G = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=4)
SPEC = DenseSpec(classes=5, width=8, fine=8)
LABELS = ("ant", "bee", "cat", "dog")

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def model(config: ViTConfig = G) -> ElasticViT:
    actual, generator = ElasticViT(config, dense=SPEC).eval(), torch.Generator().manual_seed(7)
    for name, parameter in actual.named_parameters():
        random_image = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * random_image if gain else 0.2 * random_image)
    return actual


def random_images(batch: int, side: int = 96) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def steps(host: ElasticViT, text: str, depth: int = G.depth) -> ResolvedPlan:
    return ResolvedPlan(reduction.create(text, host), depth)


def blocks(host: ElasticViT, images: Tensor, text: str) -> list[Tokens]:
    tokens = [host.embed(images)]
    reducer = reduction.create(text, host)
    for index, block in enumerate(host.blocks):
        tokens.append(block(tokens[-1], reducer, index))
    return tokens


@pytest.mark.parametrize("side", [96, 64, 16])
def test_scores_cover_the_image(side: int) -> None:
    host = model()
    scores, features = segment(host, random_images(2, side), steps(host, "none"))
    assert scores.shape == (2, SPEC.classes, side // STRIDE, side // STRIDE)
    assert features.patches.shape == (2, (side // 16) ** 2, SPEC.width)
    assert features.tokens.tolist() == [1 + (side // 16) ** 2] * 2


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_untouched_patches_are_read_after_the_last_block(depth: int) -> None:
    host, images = model(), random_images(2)
    stages = blocks(host, images, "none")
    features = encode(host, images, steps(host, "none", depth)).patches
    assert torch.equal(features, dense_of(host).read(stages[depth].x[:, 1:], depth))


def test_merged_patches_have_the_features_of_their_token() -> None:
    host, images = model(), random_images(2)
    last = blocks(host, images, "tome:3")[-1]
    read = dense_of(host).read(last.x, G.depth)
    features = encode(host, images, steps(host, "tome:3")).patches
    for row in range(2):
        for patch, token in enumerate(last.source[row].tolist()):
            assert torch.allclose(features[row, patch], read[row, token], atol=1e-5)


@pytest.mark.parametrize("text", ["evit:0.5", "ats:0.5", "dtop:0.3"])
def test_dropped_patches_keep_their_last_features(text: str) -> None:
    host, images = model(), random_images(3)
    stages = blocks(host, images, text)
    features = encode(host, images, steps(host, text)).patches
    left = 0
    for row in range(3):
        for patch in range(features.shape[1]):
            block = max(n for n, tokens in enumerate(stages) if represented(tokens)[row, patch])
            left += block < G.depth
            token = stages[block].x[row, int(stages[block].source[row, patch])]
            expected = dense_of(host).read(token[None, None], block)[0, 0]
            assert torch.allclose(features[row, patch], expected, atol=1e-4)
    assert left > 10


def test_clustered_patches_are_mixtures_of_clusters() -> None:
    host, images = model(), random_images(2)
    stages = blocks(host, images, "expedit:0.5@3")
    before, last = stages[2], stages[-1]
    assert len(last) == 1 + 9
    _, parts = cluster(before.x[:, 1:], 3)
    assert torch.allclose(last.grid(), parts @ last.x[:, 1:], atol=1e-5)
    expected = dense_of(host).read(parts @ last.x[:, 1:], G.depth)
    assert torch.allclose(encode(host, images, steps(host, "expedit:0.5@3")).patches, expected, atol=1e-4)


def test_patches_dropped_by_share_keep_their_features() -> None:
    host = model()
    head, before = dense_of(host), blocks(host, random_images(2), "none")[2]
    actual = encode(host, random_images(2), steps(host, "dtop:0.3@3"))
    gone = ~represented(blocks(host, random_images(2), "dtop:0.3@3")[-1])
    assert torch.allclose(actual.patches[gone], head.read(before.grid(), 2)[gone], atol=1e-5)
    assert actual.tokens.tolist() == [12, 12]


def test_keeping_all_patches_is_the_identity() -> None:
    host = model()
    whole, all_of_them = (encode(host, random_images(2), steps(host, text)) for text in ("none", "dtop:1@3"))
    assert torch.equal(whole.patches, all_of_them.patches)


def checkpoint() -> Checkpoint:
    return attach(CheckpointCard("seg", G, LABELS, dense=SPEC), model().state_dict(), "seg")


def test_runner_returns_maps_of_each_class() -> None:
    runner = TorchRunner(checkpoint())
    assert runner.card.task == "segment"
    rng = torch.Generator().manual_seed(4)
    batch = torch.randint(0, 256, (3, 96, 96, 3), generator=rng, dtype=torch.uint8)
    for text in ("full", "tome:3", "evit:0.5", "dtop:0.5", "expedit:0.5", "depth:4", "seg@64"):
        plan = runner.card.plan(text)
        results = runner.run(batch, plan)
        scores, _ = segment(
            runner.models["seg"], runner.preprocess(batch, plan.image_size), runner.resolve(plan)
        )
        for row, result in enumerate(results):
            assert not isinstance(result, Exception)
            assert result.maps is not None
            best = scores[row].argmax(0)
            assert result.maps.classes == tuple(torch.unique(best).tolist())
            assert torch.allclose(
                torch.from_numpy(result.maps.scores).float(),
                scores[row, list(result.maps.classes)],
                atol=0.05,
            )
            assert result.scores.tolist() == pytest.approx(
                (best.flatten().bincount(minlength=SPEC.classes) / best.numel()).tolist()
            )
            # In so small a model, the reducer's own work can exceed what it saves.
            assert 0 < result.gflops <= 1.02 * runner.card.ladder[-1].gflops


def test_cost_of_full_includes_the_head() -> None:
    runner, bare = TorchRunner(checkpoint()), ElasticViT(G)
    assert runner.card.ladder[-1].gflops > 0
    head = runner.models["seg"].dense
    assert head is not None
    whole = (
        TorchRunner(attach(CheckpointCard("plain", G, LABELS), bare.state_dict(), "x")).card.ladder[-1].gflops
    )
    assert runner.card.ladder[-1].gflops == pytest.approx(whole + (head.macs(6) - 24 * 4) / 1e9)


@pytest.mark.parametrize("text", ["exit:0.9", "content:0.9"])
def test_plans_for_classification_are_refused(text: str) -> None:
    runner = TorchRunner(checkpoint())
    with pytest.raises(BadPlan):
        runner.check(runner.card.plan(text))


def test_image_without_finite_scores_fails_alone() -> None:
    scores = torch.zeros(2, 3, 4, 4)
    scores[1, 0, 2, 2] = math.nan
    (_, fine), (_, broken) = class_maps(scores)
    assert fine is not None
    assert broken is None
    assert Plan("seg", 96) == TorchRunner(checkpoint()).full
