"""The dense head: what it reads of patches that stay, merge, leave or are clustered, and what Expedit and
DToP decide, against plain loops over the papers' equations."""

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
from foveate.models.runners.dense import class_maps, dense_of, encode, segment, shown
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.zoo import Card

G = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=4)
SPEC = DenseSpec(classes=5, width=8, fine=8)
LABELS = ("ant", "bee", "cat", "dog")

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def model(config: ViTConfig = G) -> ElasticViT:
    found, generator = ElasticViT(config, dense=SPEC).eval(), torch.Generator().manual_seed(7)
    for name, parameter in found.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return found


def pictures(batch: int, side: int = 96) -> Tensor:
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
def test_scores_cover_the_picture(side: int) -> None:
    host = model()
    scores, canvas = segment(host, pictures(2, side), steps(host, "none"))
    assert scores.shape == (2, SPEC.classes, side // STRIDE, side // STRIDE)
    assert canvas.patches.shape == (2, (side // 16) ** 2, SPEC.width)
    assert canvas.tokens.tolist() == [1 + (side // 16) ** 2] * 2


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_untouched_patches_are_read_after_the_last_block(depth: int) -> None:
    host, images = model(), pictures(2)
    stages = blocks(host, images, "none")
    canvas = encode(host, images, steps(host, "none", depth)).patches
    assert torch.equal(canvas, dense_of(host).read(stages[depth].x[:, 1:], depth))


def test_merged_patches_are_read_from_what_they_became() -> None:
    host, images = model(), pictures(2)
    last = blocks(host, images, "tome:3")[-1]
    read = dense_of(host).read(last.x, G.depth)
    canvas = encode(host, images, steps(host, "tome:3")).patches
    for row in range(2):
        for patch, token in enumerate(last.source[row].tolist()):
            assert torch.allclose(canvas[row, patch], read[row, token], atol=1e-5)


@pytest.mark.parametrize("text", ["evit:0.5", "ats:0.5", "dtop:0.3"])
def test_patches_that_leave_are_read_as_they_were(text: str) -> None:
    host, images = model(), pictures(3)
    stages = blocks(host, images, text)
    canvas = encode(host, images, steps(host, text)).patches
    left = 0
    for row in range(3):
        for patch in range(canvas.shape[1]):
            block = max(n for n, tokens in enumerate(stages) if shown(tokens)[row, patch])
            left += block < G.depth
            token = stages[block].x[row, int(stages[block].source[row, patch])]
            wanted = dense_of(host).read(token[None, None], block)[0, 0]
            assert torch.allclose(canvas[row, patch], wanted, atol=1e-4)
    assert left > 10


def test_clustered_patches_are_mixed_from_clusters() -> None:
    host, images = model(), pictures(2)
    stages = blocks(host, images, "expedit:0.5@3")
    before, last = stages[2], stages[-1]
    assert len(last) == 1 + 9
    _, parts = cluster(before.x[:, 1:], 3)
    assert torch.allclose(last.grid(), parts @ last.x[:, 1:], atol=1e-5)
    wanted = dense_of(host).read(parts @ last.x[:, 1:], G.depth)
    assert torch.allclose(encode(host, images, steps(host, "expedit:0.5@3")).patches, wanted, atol=1e-4)


def test_what_leaves_by_share_is_read_as_it_left() -> None:
    host = model()
    head, before = dense_of(host), blocks(host, pictures(2), "none")[2]
    found = encode(host, pictures(2), steps(host, "dtop:0.3@3"))
    gone = ~shown(blocks(host, pictures(2), "dtop:0.3@3")[-1])
    assert torch.allclose(found.patches[gone], head.read(before.grid(), 2)[gone], atol=1e-5)
    assert found.tokens.tolist() == [12, 12]


def test_all_of_the_patches_are_the_identity() -> None:
    host = model()
    whole, all_of_them = (encode(host, pictures(2), steps(host, text)) for text in ("none", "dtop:1@3"))
    assert torch.equal(whole.patches, all_of_them.patches)


def checkpoint() -> Checkpoint:
    return attach(Card("seg", G, LABELS, dense=SPEC), model().state_dict(), "seg")


def test_a_runner_tells_where_each_class_is() -> None:
    runner = TorchRunner(checkpoint())
    assert runner.card.task == "segment"
    rng = torch.Generator().manual_seed(4)
    batch = torch.randint(0, 256, (3, 96, 96, 3), generator=rng, dtype=torch.uint8)
    for text in ("full", "tome:3", "evit:0.5", "dtop:0.5", "expedit:0.5", "depth:4", "seg@64"):
        plan = runner.card.plan(text)
        results = runner.run(batch, plan)
        scores, _ = segment(runner.models["seg"], runner.sized(batch, plan.image_size), runner.steps(plan))
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
            assert 0 < result.gflops <= runner.card.ladder[-1].gflops


def test_the_price_of_full_has_the_head_in_it() -> None:
    runner, bare = TorchRunner(checkpoint()), ElasticViT(G)
    assert runner.card.ladder[-1].gflops > 0
    head = runner.models["seg"].dense
    assert head is not None
    whole = TorchRunner(attach(Card("plain", G, LABELS), bare.state_dict(), "x")).card.ladder[-1].gflops
    assert runner.card.ladder[-1].gflops == pytest.approx(whole + (head.macs(6) - 24 * 4) / 1e9)


@pytest.mark.parametrize("text", ["exit:0.9", "content:0.9"])
def test_what_names_whole_pictures_is_refused(text: str) -> None:
    runner = TorchRunner(checkpoint())
    with pytest.raises(BadPlan):
        runner.check(runner.card.plan(text))


def test_scores_that_are_not_finite_fail_alone() -> None:
    scores = torch.zeros(2, 3, 4, 4)
    scores[1, 0, 2, 2] = math.nan
    (_, fine), (_, broken) = class_maps(scores)
    assert fine is not None
    assert broken is None
    assert Plan("seg", 96) == TorchRunner(checkpoint()).full
