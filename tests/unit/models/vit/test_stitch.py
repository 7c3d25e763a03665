"""Further elastic axes: attention heads, image sizes, lighter siblings, and stitches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.reduction import create
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import Stitch, StitchSpec
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.weights.family import Family
from foveate.models.zoo import CheckpointCard

LARGE = ViTConfig(image_size=64, width=24, depth=6, heads=4, classes=7)
LIGHT = ViTConfig(image_size=64, width=16, depth=4, heads=2, classes=7)
INTO_LARGE, INTO_LIGHT = StitchSpec("large", 3, "light", 2), StitchSpec("light", 2, "large", 3)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def random_checkpoint(name: str, config: ViTConfig, seed: int) -> Checkpoint:
    """A model with weights far enough from zero that images get different scores."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in ElasticViT(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        gain = value.ndim == 1 and key.endswith("weight")
        state[key] = 1 + 0.1 * noise if gain else 0.2 * noise
    return attach(CheckpointCard(name, config), state, name)


def joint(spec: StitchSpec) -> nn.Linear:
    widths = {"large": LARGE.width, "light": LIGHT.width}
    torch.manual_seed(5)
    return nn.Linear(widths[spec.starts], widths[spec.answers])


def family() -> Family:
    large, light = random_checkpoint("large", LARGE, 1), random_checkpoint("light", LIGHT, 2)
    return Family(large, (light,), {spec: joint(spec) for spec in (INTO_LARGE, INTO_LIGHT)})


def random_photos(count: int, side: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def answers(runner: TorchRunner, text: str, media: list[np.ndarray]) -> list[Result]:
    plan = Plan.parse(text, runner.full)
    results = runner.run(runner.stack(media, plan), plan)
    assert all(isinstance(result, Result) for result in results)
    return [result for result in results if isinstance(result, Result)]


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(7))


# Heads


def test_using_all_heads_is_the_full_output() -> None:
    runner = TorchRunner(random_checkpoint("large", LARGE, 1))
    for all_heads, no_cap in zip(
        answers(runner, "heads:4", random_photos(2)), answers(runner, "full", random_photos(2)), strict=True
    ):
        assert np.array_equal(all_heads.scores, no_cap.scores)
        assert all_heads.gflops == no_cap.gflops


def test_fewer_heads_change_the_answer_and_cost_the_same() -> None:
    """All heads are computed and then masked."""
    runner = TorchRunner(random_checkpoint("large", LARGE, 1))
    full = answers(runner, "full", random_photos(2))[0]
    costs = []
    for heads in (3, 2, 1):
        result = answers(runner, f"heads:{heads}", random_photos(2))[0]
        assert not np.allclose(result.scores, full.scores)
        costs.append(result.gflops)
    assert costs == [full.gflops] * 3


@pytest.mark.parametrize("plan", ["heads:5", "heads:2/mctf:3"])
def test_too_many_heads_or_heads_with_mctf_are_refused(plan: str) -> None:
    runner = TorchRunner(random_checkpoint("large", LARGE, 1))
    with pytest.raises(BadPlan):
        runner.check(Plan.parse(plan, runner.full))


# Sizes


def test_images_of_full_size_are_scaled_to_the_plan() -> None:
    runner = TorchRunner(random_checkpoint("large", LARGE, 1))
    media = random_photos(2)
    halves = [image.reshape(32, 2, 32, 2, 3).mean((1, 3)).astype(np.uint8) for image in media]
    flat = [np.full((64, 64, 3), shade, np.uint8) for shade in (40, 200)]
    small = [np.full((32, 32, 3), shade, np.uint8) for shade in (40, 200)]
    for large, already in zip(
        answers(runner, "large@32", flat), answers(runner, "large@32", small), strict=True
    ):
        assert np.allclose(large.scores, already.scores, atol=1e-5)
    assert all(
        result.gflops < 0.4 * runner.card.ladder[-1].gflops for result in answers(runner, "large@32", halves)
    )


def test_images_of_other_or_mixed_sizes_are_refused() -> None:
    runner = TorchRunner(random_checkpoint("large", LARGE, 1))
    plan = Plan.parse("large@32", runner.full)
    for media in (random_photos(2, 48), [*random_photos(1, 64), *random_photos(1, 32)]):
        with pytest.raises(RunFailed):
            runner.stack(media, plan)


# Siblings


def test_a_sibling_gives_the_same_result_alone() -> None:
    both, media = TorchRunner(family()), random_photos(3)
    alone = TorchRunner(random_checkpoint("light", LIGHT, 2))
    for text in ("light@64", "light@48/evit:0.5"):
        for shared, own in zip(answers(both, text, media), answers(alone, text, media), strict=True):
            assert np.array_equal(shared.scores, own.scores)
            assert (shared.gflops, shared.tokens) == (own.gflops, own.tokens)


def test_a_model_outside_the_family_is_refused() -> None:
    runner = TorchRunner(family())
    with pytest.raises(BadPlan, match="heavy is not a variant of large"):
        runner.check(Plan("heavy", 64))


# Stitches


@pytest.mark.parametrize("spec", [INTO_LARGE, INTO_LIGHT])
def test_a_stitch_runs_the_first_blocks_of_one_model_and_the_last_of_the_other(spec: StitchSpec) -> None:
    members = {member.name: member.model for member in family().members}
    front, back, link = members[spec.starts], members[spec.answers], joint(spec)
    out = Stitch(spec, front, link, back)(images())
    tokens = front.embed(images())
    for index in range(spec.run):
        tokens = front.blocks[index](tokens, create("none", front), index)
    tokens = tokens.with_features(link(tokens.x))
    for index in range(spec.replaced, back.config.depth):
        tokens = back.blocks[index](tokens, create("none", back), index)
    assert torch.allclose(out.logits, back.classify(tokens), atol=1e-6)
    assert out.exit_layer.tolist() == [back.config.depth] * 3


def test_a_stitch_of_a_model_with_itself_is_that_model() -> None:
    model = random_checkpoint("large", LARGE, 1).model
    same = nn.Linear(LARGE.width, LARGE.width)
    same.weight.copy_(torch.eye(LARGE.width))
    same.bias.zero_()
    result = Stitch(StitchSpec("large", 3, "large", 3), model, same, model)(images())
    full: TrunkOutput = model(images(), ResolvedPlan(create("none", model), LARGE.depth))
    assert torch.allclose(result.logits, full.logits, atol=1e-5)


def test_a_stitch_between_rotary_models_uses_the_positions_of_each() -> None:
    rotary = replace(LARGE, rope="cat", heads=2)
    model = random_checkpoint("large", rotary, 1).model
    other = random_checkpoint("large", replace(rotary, rope_temperature=10.0, rope_half=True), 1).model
    same = nn.Linear(LARGE.width, LARGE.width)
    same.weight.copy_(torch.eye(LARGE.width))
    same.bias.zero_()
    resolved = ResolvedPlan(create("none", model), LARGE.depth)
    spec = StitchSpec("large", 3, "large", 3)
    assert torch.allclose(
        Stitch(spec, model, same, model)(images()).logits, model(images(), resolved).logits, atol=1e-5
    )
    whole = Stitch(StitchSpec("large", 0, "large", 0), model, same, other)(images())
    assert torch.allclose(whole.logits, other(images(), resolved).logits, atol=1e-5)
    assert not torch.allclose(whole.logits, model(images(), resolved).logits, atol=1e-3)


def test_a_stitch_costs_more_than_one_model_and_less_than_the_other() -> None:
    runner, media = TorchRunner(family()), random_photos(1)
    (large,), (light,) = answers(runner, "full", media), answers(runner, "light@64", media)
    for text in ("stitch:3", "light@64/stitch:2"):
        (result,) = answers(runner, text, media)
        assert light.gflops < result.gflops < large.gflops


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("stitch:4", "large has no stitch 4; it has 3"),
        ("stitch:3/evit:0.5", "stitch:3 takes tokens unreduced"),
        ("stitch:3/depth:4", "stitch:3 takes tokens unreduced"),
    ],
)
def test_an_unknown_stitch_or_a_reduced_one_is_refused(plan: str, sentence: str) -> None:
    runner = TorchRunner(family())
    with pytest.raises(BadPlan, match=sentence):
        runner.check(Plan.parse(plan, runner.full))


def test_stitches_of_a_sibling_that_is_not_loaded_are_ignored() -> None:
    runner = TorchRunner(replace(family(), siblings=()))
    with pytest.raises(BadPlan, match="large has no stitch 3; it has none"):
        runner.check(Plan.parse("stitch:3", runner.full))
