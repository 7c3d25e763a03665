"""Video checkpoints of transformers: answers as transformers gives them, cheaper plans, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.models.loading import precision
from foveate.models.runners.forward_cost import count, skeleton
from foveate.models.zoo.heldout import HeldOut, heldout
from tests.support import pretrained
from tests.support.pretrained import (
    CLIP,
    FRAMES,
    LABELS,
    RANGE,
    SIDE,
    Make,
    load_runner,
    run_plan,
    saved,
    transformers,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TESTED = {
    "videomae": pretrained.videomae,
    "timesformer": pretrained.timesformer,
    "vivit": pretrained.vivit,
}
every_tested = pytest.mark.parametrize("make", TESTED.values(), ids=TESTED)
VIVIT_RESCALE = 1 / 127.5
"""ViViT's own range, from -1 to 1 before means are subtracted."""


def clip(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)


def normalised(media: list[NDArray[np.uint8]], offset: float = 0.0) -> Tensor:
    """(B, T, 3, S, S) as CLIP says, written down once more."""
    pixels = torch.from_numpy(np.stack(media)).permute(0, 1, 4, 2, 3).double() / 255 - offset
    mean, std = (torch.tensor(CLIP[key]).view(3, 1, 1).double() for key in ("image_mean", "image_std"))
    return ((pixels - mean) / std).float()


def checkpoint(tmp_path: Path, make: Make) -> Path:
    return saved(tmp_path / make.__name__, make(), CLIP | {"offset": False})


@torch.no_grad()
def transformers_output(path: Path, make: Make, pixels: Tensor, **changes: Any) -> NDArray[np.float32]:
    """Probabilities from transformers' own model, its configuration changed."""
    model = type(make()).from_pretrained(path, **changes).eval()
    scores: NDArray[np.float32] = model(pixels).logits.softmax(-1).numpy()
    return scores


@pytest.mark.parametrize("make", [*TESTED.values(), pretrained.vjepa2], ids=[*TESTED, "vjepa2"])
def test_full_equals_transformers(make: Make, tmp_path: Path) -> None:
    path, media = checkpoint(tmp_path, make), [clip(1), clip(2)]
    expected = transformers_output(path, make, normalised(media))
    results = run_plan(load_runner(path), "full", media)
    assert np.abs(np.stack([result.scores for result in results]) - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_vivit_pixels_are_shifted_by_one_by_default(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", pretrained.vivit(), CLIP | {"rescale_factor": VIVIT_RESCALE})
    pixels = torch.from_numpy(clip(1)).permute(0, 3, 1, 2).double() * VIVIT_RESCALE - 1
    mean, std = (torch.tensor(CLIP[key]).view(3, 1, 1).double() for key in ("image_mean", "image_std"))
    expected = transformers_output(path, pretrained.vivit, ((pixels - mean) / std).float()[None])[0]
    (result,) = run_plan(load_runner(path), "full", [clip(1)])
    assert np.abs(result.scores - expected).max() < 1e-5


@every_tested
def test_fewer_frames_keep_their_positions_in_the_clip(make: Make, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, make)
    runner, media = load_runner(path), [clip(1), clip(2)]
    full = run_plan(runner, "full", media)
    same = run_plan(runner, f"frames:{FRAMES}", media)
    half = run_plan(runner, "frames:4", media)
    for a, b, c in zip(full, same, half, strict=True):
        assert np.abs(a.scores - b.scores).max() < 1e-6
        assert (a.tokens, a.gflops) == (b.tokens, b.gflops)
        assert c.tokens == a.tokens // 2
        assert c.gflops < 0.55 * a.gflops
    unseen = [other.copy() for other in media]
    for other in unseen:
        other[[0, 2, 4, 6]] = 0  # frames:4 of 8 takes 1, 3, 5 and 7
    for a, b in zip(half, run_plan(runner, "frames:4", unseen), strict=True):
        assert np.array_equal(a.scores, b.scores)
    assert np.abs(full[0].scores - run_plan(runner, "full", unseen)[0].scores).max() > 1e-3


def test_videomae_with_fewer_frames_equals_the_model_with_those_positions(tmp_path: Path) -> None:
    path, media = checkpoint(tmp_path, pretrained.videomae), [clip(1)]
    model = type(pretrained.videomae()).from_pretrained(path).eval()
    embeddings, patches = model.videomae.embeddings, (SIDE // 16) ** 2
    table = embeddings.position_embeddings.view(1, FRAMES // 2, patches, -1)
    embeddings.position_embeddings = table[:, [1, 3]].flatten(1, 2)
    with torch.no_grad():
        expected = model(normalised(media)[:, [1, 3, 5, 7]]).logits.softmax(-1).numpy()
    (result,) = run_plan(load_runner(path), "frames:4", media)
    assert np.abs(result.scores - expected[0]).max() < 1e-5


@every_tested
def test_smaller_frames_cost_less_and_do_not_change_the_model(make: Make, tmp_path: Path) -> None:
    runner, media = load_runner(checkpoint(tmp_path, make)), [clip(1), clip(2)]
    before = run_plan(runner, "full", media)
    small = run_plan(runner, f"{runner.card.name}@64/frames:4", [clip(1, 64), clip(2, 64)])
    assert small[0].tokens * 4.5 == before[0].tokens
    assert small[0].gflops < 0.3 * before[0].gflops
    assert np.abs(small[0].scores - small[1].scores).max() > 1e-4
    after = run_plan(runner, "full", media)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(before, after, strict=True))


def test_space_positions_are_interpolated_to_smaller_frames(tmp_path: Path) -> None:
    """TimeSformer at another size, against the model whose space table was interpolated beforehand."""
    path, small = checkpoint(tmp_path, pretrained.timesformer), [clip(1, 64)]
    model = type(pretrained.timesformer()).from_pretrained(path).eval()
    table = model.timesformer.embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    model.timesformer.embeddings.position_embeddings = torch.nn.Parameter(
        torch.cat([table[:, :1], scaled], 1)
    )
    model.config.image_size = 64
    with torch.no_grad():
        expected = model(normalised(small)).logits.softmax(-1).numpy()
    (result,) = run_plan(load_runner(path), "timesformer@64", small)
    assert np.abs(result.scores - expected[0]).max() < 1e-5


@every_tested
def test_items_of_a_batch_are_independent(make: Make, tmp_path: Path) -> None:
    runner, media = load_runner(checkpoint(tmp_path, make)), [clip(n) for n in range(3)]
    for plan in runner.candidates():
        for result, medium in zip(run_plan(runner, str(plan), media), media, strict=True):
            (alone,) = run_plan(runner, str(plan), [medium])
            assert np.abs(result.scores - alone.scores).max() < 1e-5


@every_tested
def test_plans_that_cannot_run_are_refused(make: Make, tmp_path: Path) -> None:
    runner = load_runner(checkpoint(tmp_path, make))
    full = runner.full
    for wrong in (
        replace(full, frames=FRAMES + 2),
        replace(full, image_size=50),
        replace(full, image_size=2 * SIDE),
        replace(full, depth=1),
        replace(full, glance="4"),
        replace(full, reuse="0.5"),
        replace(full, reducer="tome:2"),
        replace(full, precision="bf16"),
    ):
        with pytest.raises(BadPlan, match=r"^[^\n]+$"):
            runner.check(wrong)
    if make is not pretrained.timesformer:
        with pytest.raises(BadPlan, match="multiples of 2 frames up to 8"):
            runner.check(replace(full, frames=3))


def test_card_has_the_number_and_size_of_frames(tmp_path: Path) -> None:
    table = CLIP | {"size": {"shortest_edge": SIDE * 2}}
    card = load_runner(saved(tmp_path / "m", pretrained.videomae(), table)).card
    assert (card.task, card.frames, card.labels, card.full.image_size) == ("classify", FRAMES, LABELS, SIDE)
    assert card.input is not None
    assert (card.input.crop_pct, card.input.crop_mode) == (0.5, "center")


def test_clip_without_finite_scores_fails_alone_and_other_shapes_are_refused(
    tmp_path: Path,
) -> None:
    runner = load_runner(checkpoint(tmp_path, pretrained.videomae))
    white = np.full((FRAMES, SIDE, SIDE, 3), 255, np.uint8)

    def spoil(_: object, inputs: tuple[Tensor], output: Any) -> Any:
        output["logits"] = output["logits"].masked_fill(
            (inputs[0].flatten(1).amin(1) > 1)[:, None], torch.nan
        )
        return output

    runner.model.register_forward_hook(spoil)
    fine, bad = runner.run(runner.stack([clip(1), white], runner.full), runner.full)
    assert isinstance(bad, RunFailed)
    assert isinstance(fine, Result)
    for wrong in (clip(1)[:4], clip(1)[0], clip(1, 32)):
        with pytest.raises(RunFailed):
            runner.stack([wrong], runner.full)


def test_half_precision_gives_similar_results(tmp_path: Path) -> None:
    for make in TESTED.values():
        path = checkpoint(tmp_path / "both", make)
        for text in ("full", "frames:4"):
            (low,), (high,) = (
                run_plan(load_runner(path, precision=p), text, [clip(1)]) for p in ("bf16", "fp32")
            )
            assert np.abs(low.scores - high.scores).max() < 0.05


def test_precisions_are_compared_on_still_clips(tmp_path: Path) -> None:
    runner = load_runner(checkpoint(tmp_path, pretrained.videomae))
    shipped = heldout()
    few = HeldOut(shipped.labels, shipped.jpegs[:3], shipped.targets[:3])
    (first, *_) = precision.top1(runner, few)
    still = np.stack([next(few.pixels(SIDE))] * FRAMES)
    assert first == run_plan(runner, "full", [still])[0].scores.argmax()
    assert precision.agreement(runner, runner, few) == 1


def test_gflops_equal_published_values() -> None:
    """VideoMAE ViT-B, 16 frames of 224: 180 G; TimeSformer, 8 frames: 0.59 T for three views."""
    mae, former = transformers.VideoMAEConfig(num_labels=400), transformers.TimesformerConfig(num_labels=400)
    for kind, config, frames, published in (
        (transformers.VideoMAEForVideoClassification, mae, 16, 180),
        (transformers.TimesformerForVideoClassification, former, 8, 590 / 3),
    ):
        with torch.device("meta"):
            model = kind(config).eval()
        empty = torch.empty(1, frames, 3, 224, 224, device="meta")
        gflops, _ = count(skeleton(model), empty, lambda meta, pixels: meta(pixels))
        assert gflops == pytest.approx(published, rel=0.01)


def test_configuration_without_frames_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", pretrained.vjepa2(), RANGE | CLIP)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"frames_per_clip": 8', '"frames_per_clip": 0'))
    with pytest.raises(SetupError, match=r"^[^\n]*(frames|configuration)[^\n]*$"):
        load_runner(path)
