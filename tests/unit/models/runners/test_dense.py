"""The dense head: what it reads of patches that stay, merge, leave or are clustered, and what Expedit and
DToP decide, against plain loops over the papers' equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import reduction
from foveate.models.heads.dense import STRIDE, DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction.dtop import CONTEXT, stays
from foveate.models.reduction.expedit import clustered
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
    found, generator = ElasticViT(config, dense=SPEC).eval(), torch.Generator().manual_seed(7)
    for name, parameter in found.named_parameters():
        random_image = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * random_image if gain else 0.2 * random_image)
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
def test_scores_cover_the_image(side: int) -> None:
    host = model()
    scores, features = segment(host, pictures(2, side), steps(host, "none"))
    assert scores.shape == (2, SPEC.classes, side // STRIDE, side // STRIDE)
    assert features.patches.shape == (2, (side // 16) ** 2, SPEC.width)
    assert features.tokens.tolist() == [1 + (side // 16) ** 2] * 2


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_untouched_patches_are_read_after_the_last_block(depth: int) -> None:
    host, images = model(), pictures(2)
    stages = blocks(host, images, "none")
    features = encode(host, images, steps(host, "none", depth)).patches
    assert torch.equal(features, dense_of(host).read(stages[depth].x[:, 1:], depth))


def test_merged_patches_have_the_features_of_their_token() -> None:
    host, images = model(), pictures(2)
    last = blocks(host, images, "tome:3")[-1]
    read = dense_of(host).read(last.x, G.depth)
    features = encode(host, images, steps(host, "tome:3")).patches
    for row in range(2):
        for patch, token in enumerate(last.source[row].tolist()):
            assert torch.allclose(features[row, patch], read[row, token], atol=1e-5)


@pytest.mark.parametrize("text", ["evit:0.5", "ats:0.5", "dtop:0.3"])
def test_dropped_patches_keep_their_last_features(text: str) -> None:
    host, images = model(), pictures(3)
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
    host, images = model(), pictures(2)
    stages = blocks(host, images, "expedit:0.5@3")
    before, last = stages[2], stages[-1]
    assert len(last) == 1 + 9
    _, parts = clustered(before.x[:, 1:], 3)
    assert torch.allclose(last.grid(), parts @ last.x[:, 1:], atol=1e-5)
    expected = dense_of(host).read(parts @ last.x[:, 1:], G.depth)
    assert torch.allclose(encode(host, images, steps(host, "expedit:0.5@3")).patches, expected, atol=1e-4)


def slow_clusters(x: Tensor, rows: int, rounds: int, reach: int, tau: float) -> tuple[Tensor, Tensor]:
    """Section 3.2 of the Expedit paper patch by patch: x (P, D) to centres (J, D) and shares (J, P)."""
    side = math.isqrt(len(x))
    grid = x.T.reshape(1, -1, side, side)
    centres = F.adaptive_avg_pool2d(grid, rows).flatten(2)[0].T.clone()
    share = torch.zeros(rows * rows, len(x))
    for _ in range(rounds):
        share.zero_()
        for patch in range(len(x)):
            row, column = patch // side * rows // side, patch % side * rows // side
            near = [
                j for j in range(rows * rows)
                if abs(j // rows - row) <= reach and abs(j % rows - column) <= reach
            ]  # fmt: skip
            weights = [math.exp(-tau * float(((x[patch] - centres[j]) ** 2).sum())) for j in near]
            for j, weight in zip(near, weights, strict=True):
                share[j, patch] = weight / sum(weights)
        centres = share @ x / share.sum(1, keepdim=True)
    return centres, share


@pytest.mark.parametrize(("rows", "reach", "tau"), [(3, 1, 0.05), (4, 2, 0.01), (2, 1, 0.2)])
def test_expedit_clusters_as_the_paper_says(rows: int, reach: int, tau: float) -> None:
    x = torch.randn(2, 36, 24, generator=torch.Generator().manual_seed(5))
    share, parts = clustered(x, rows, iterations=3, reach=reach, sharpness=tau, nearest=3)
    for row in range(2):
        centres, expected = slow_clusters(x[row], rows, 3, reach, tau)
        assert torch.allclose(share[row], expected, atol=1e-4)
        for patch in range(36):  # equation 4: the k nearest clusters, wherever they are
            apart = ((x[row, patch] - centres) ** 2).sum(1)
            nearest = apart.argsort()[:3]
            weights = torch.exp(-tau * apart[nearest])
            mixed = torch.zeros(rows * rows).scatter(0, nearest, weights / weights.sum())
            assert torch.allclose(parts[row, patch], mixed, atol=1e-4)


def test_dtop_keeps_who_is_not_sure_and_the_surest_few_of_each_class() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = (4 * torch.randn(3, 60, 4, generator=generator)).softmax(2)
    present = torch.rand(3, 60, generator=generator) < 0.9
    found = stays(scores, present, 0.9)
    for row in range(3):
        best, classes = scores[row].max(1)
        for patch in range(60):
            rivals = [
                p for p in range(60)
                if present[row, p] and classes[p] == classes[patch] and best[p] > best[patch]
            ]  # fmt: skip
            expected = bool(present[row, patch]) and (float(best[patch]) <= 0.9 or len(rivals) < CONTEXT)
            assert bool(found[row, patch]) == expected
    assert 0 < int(found.sum()) < int(present.sum())


def test_dtop_by_share_sends_on_as_many_of_every_picture_and_those_least_sure() -> None:
    host, read_after = model(), 2
    tokens = blocks(host, pictures(4), "dtop:0.3@3")
    before, after = tokens[read_after], tokens[-1]
    assert {len(found) for found in tokens[read_after + 1 :]} == {1 + math.ceil(0.3 * 36)}
    head = dense_of(host)
    sure = head.classify_patches(head.read(before.grid(), read_after)).softmax(2).amax(2)
    for row, kept in zip(sure, represented(after), strict=True):
        assert row[kept].max() <= row[~kept].min()


def test_what_leaves_by_share_is_read_as_it_left() -> None:
    host = model()
    head, before = dense_of(host), blocks(host, pictures(2), "none")[2]
    found = encode(host, pictures(2), steps(host, "dtop:0.3@3"))
    gone = ~represented(blocks(host, pictures(2), "dtop:0.3@3")[-1])
    assert torch.allclose(found.patches[gone], head.read(before.grid(), 2)[gone], atol=1e-5)
    assert found.tokens.tolist() == [12, 12]


def test_all_of_the_patches_are_the_identity() -> None:
    host = model()
    whole, all_of_them = (encode(host, pictures(2), steps(host, text)) for text in ("none", "dtop:1@3"))
    assert torch.equal(whole.patches, all_of_them.patches)


@pytest.mark.parametrize(
    "text", ["dtop:0@3", "dtop:0.3@0", "dtop:0.3@7", "dtop:1.1@3", "dtop:@3", "dtop:0.3@"]
)
def test_dtop_refuses_what_is_no_share_or_no_block(text: str) -> None:
    with pytest.raises(BadPlan, match="dtop takes"):
        reduction.create(text, model())


def test_dtop_needs_a_dense_head() -> None:
    with pytest.raises(BadPlan, match="dense head"):
        reduction.create("dtop:0.9", UntrainedContext(G))


def test_what_was_mixed_can_be_reduced_again() -> None:
    tokens = Tokens.start(torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1)), 1)
    parts = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]])
    made = Assignment(
        torch.tensor([[0]]), torch.tensor([[1, 2, 3, 4]]), torch.full((1, 2, 4), 0.25), parts=parts
    )
    mixed = tokens.apply(made)
    assert mixed.source.tolist() == [[1, 1, 2, 2]]
    assert torch.allclose(mixed.grid(), parts @ mixed.x[:, 1:])
    assert torch.equal(mixed.rows(torch.tensor([0])).grid(), mixed.grid())
    dropped = mixed.apply(Assignment(torch.tensor([[0, 2]])))
    assert dropped.source.tolist() == [[-1, -1, 1, 1]]
    assert torch.allclose(dropped.grid(), parts[:, :, 1:] @ mixed.x[:, 2:])


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
            assert 0 < result.gflops <= runner.card.ladder[-1].gflops


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
