"""Segmentation checkpoints of transformers: answers as transformers gives them, cheaper plans, refusals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import RunFailed
from foveate.core.outcome import Result
from foveate.models.huggingface.segmenters import scores_of
from foveate.models.profiling.evaluation import mask_from_maps
from tests.support import pretrained
from tests.support.pretrained import (
    LABELS,
    RANGE,
    SIDE,
    SQUARE,
    Make,
    load_runner,
    random_image,
    run_plan,
    saved,
    transformers,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TESTED = {
    "segformer": pretrained.segformer,
    "mask2former": pretrained.mask2former,
    "upernet": pretrained.upernet,
    "upernet_swin": pretrained.upernet_swin,
    "dpt": pretrained.dpt,
}
OTHERS = {"beit": pretrained.beit, "mobilevit": pretrained.mobilevit, "maskformer": pretrained.maskformer}
every_tested = pytest.mark.parametrize("make", TESTED.values(), ids=TESTED)
every = pytest.mark.parametrize("make", (TESTED | OTHERS).values(), ids=TESTED | OTHERS)


def normalised(media: list[NDArray[np.uint8]], table: Mapping[str, Any]) -> Tensor:
    """Pixels as the checkpoint's table says, written down once more."""
    pixels = torch.from_numpy(np.stack(media)).permute(0, 3, 1, 2).double() * table["rescale_factor"]
    mean, std = (torch.tensor(table[key]).view(1, 3, 1, 1).double() for key in ("image_mean", "image_std"))
    normal: Tensor = (pixels - mean) / std
    return normal.float()


@torch.no_grad()
def transformers_output(path: Path, make: Make, pixels: Tensor) -> Any:
    """transformers' own output."""
    return type(make()).from_pretrained(path).eval()(pixels)


def dense(result: Result, classes: int = len(LABELS)) -> NDArray[np.float32]:
    """The scores of the classes that are somewhere the best, minus infinity for others: (C + 1, h, w)."""
    assert result.maps is not None
    whole = np.full((classes + 1, *result.maps.scores.shape[1:]), -np.inf, np.float32)
    whole[list(result.maps.classes)] = result.maps.scores
    return whole


@every
def test_full_equals_transformers(make: Make, tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", make()), [random_image(1), random_image(2)]
    expected = scores_of(transformers_output(path, make, normalised(media, RANGE | SQUARE))).numpy()
    results = run_plan(load_runner(path), "full", media)
    for result, scores in zip(results, expected, strict=True):
        named = dense(result)[1:]
        assert result.maps is not None
        assert named.shape == scores.shape
        present = [index - 1 for index in result.maps.classes]
        assert present == np.unique(scores.argmax(0)).tolist()
        assert np.abs(named[present] - scores[present]).max() < 2e-3 * max(1, np.abs(scores).max())
        shares = np.bincount(scores.argmax(0).ravel(), minlength=len(LABELS)) / scores[0].size
        assert np.allclose(result.scores, [0, *shares], atol=1e-6)


def test_mask2former_masks_equal_transformers_own_post_processing(tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", pretrained.mask2former()), [random_image(n) for n in range(4)]
    out = transformers_output(path, pretrained.mask2former, normalised(media, RANGE | SQUARE))
    size = out.masks_queries_logits.shape[-2:]
    processor = transformers.Mask2FormerImageProcessorPil()
    expected = processor.post_process_semantic_segmentation(out, target_sizes=[size] * len(media))
    for result, mask in zip(run_plan(load_runner(path), "full", media), expected, strict=True):
        assert result.maps is not None
        # Theirs go to 384 x 384 and back on the way, which moves some borders.
        agreed = (mask_from_maps(result.maps, size) == mask.numpy() + 1).mean()
        assert agreed > 0.95
        assert len(result.maps.classes) > 1


@every
def test_items_of_a_batch_are_independent(make: Make, tmp_path: Path) -> None:
    runner = load_runner(saved(tmp_path / "m", make()))
    media = [random_image(n) for n in range(3)]
    for plan in runner.candidates():
        for result, medium in zip(run_plan(runner, str(plan), media), media, strict=True):
            (alone,) = run_plan(runner, str(plan), [medium])
            assert np.abs(result.scores - alone.scores).max() < 2e-3
            assert (dense(result).argmax(0) == dense(alone).argmax(0)).mean() > 0.99
    noisy, black = run_plan(runner, "full", [random_image(9), np.zeros_like(media[0])])
    assert not np.array_equal(dense(noisy), dense(black))


@every_tested
def test_smaller_size_equals_transformers_on_smaller_images(make: Make, tmp_path: Path) -> None:
    path, small = saved(tmp_path / "m", make()), [random_image(3, 64)]
    runner = load_runner(path)
    expected = scores_of(transformers_output(path, make, normalised(small, RANGE | SQUARE)))[0].numpy()
    (result,) = run_plan(runner, f"{runner.card.name}@64", small)
    named, best = dense(result)[1:], expected.argmax(0)
    assert (named.argmax(0) == best).mean() > 0.99
    (full,) = run_plan(runner, "full", [random_image(3)])
    assert result.gflops < 0.6 * full.gflops
    assert result.tokens < full.tokens
    (scaled,) = run_plan(runner, f"{runner.card.name}@64", [random_image(3)])
    assert dense(scaled).shape == dense(result).shape


def test_depth_is_the_number_of_pixel_decoder_layers(tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", pretrained.mask2former()), [random_image(1), random_image(2)]
    runner = load_runner(path)
    whole = type(pretrained.mask2former()).from_pretrained(path).eval()
    encoder, costs = whole.model.pixel_level_module.decoder.encoder, []
    layers = encoder.layers
    for depth in (3, 2, 1):
        encoder.layers = layers[:depth]
        with torch.no_grad():
            expected = scores_of(whole(normalised(media, RANGE | SQUARE))).numpy()
        for result, scores in zip(run_plan(runner, f"depth:{depth}", media), expected, strict=True):
            present = np.unique(scores.argmax(0))
            assert np.abs(dense(result)[present + 1] - scores[present]).max() < 1e-2
            assert result.exit_layer == depth
        costs.append(result.gflops)
    full = run_plan(runner, "full", media)
    assert costs[0] == full[0].gflops
    assert costs[0] - costs[1] == pytest.approx(costs[1] - costs[2])
    again = run_plan(load_runner(path), "full", media)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(full, again, strict=True))


def test_first_class_named_background_is_the_background(tmp_path: Path) -> None:
    names = dict(enumerate(("Background", *LABELS[1:])))
    model = pretrained.segformer(id2label=names, label2id={name: i for i, name in names.items()})
    with_background = load_runner(saved(tmp_path / "with", model))
    without = load_runner(saved(tmp_path / "without", pretrained.segformer()))
    assert with_background.card.labels == LABELS[1:]
    (shifted,), (plain,) = (
        run_plan(runner, "full", [random_image(1)]) for runner in (with_background, without)
    )
    assert shifted.maps is not None
    assert plain.maps is not None
    assert shifted.maps.classes == tuple(index - 1 for index in plain.maps.classes)
    assert np.array_equal(shifted.scores, plain.scores[1:])


def test_image_without_finite_scores_fails_alone(tmp_path: Path) -> None:
    runner = load_runner(saved(tmp_path / "m", pretrained.segformer()))
    white, media = np.full((SIDE, SIDE, 3), 255, np.uint8), [random_image(1), random_image(2)]

    def spoil(_: object, inputs: tuple[Tensor], output: Any) -> Any:
        gone = inputs[0].flatten(1).amin(1) > 1
        output["logits"] = output["logits"].masked_fill(gone[:, None, None, None], torch.nan)
        return output

    runner.model.register_forward_hook(spoil)
    results = runner.run(runner.stack([media[0], white, media[1]], runner.full), runner.full)
    assert isinstance(results[1], RunFailed)
    fine = [result for result in (results[0], results[2]) if isinstance(result, Result)]
    expected = run_plan(runner, "full", media)
    assert [np.abs(a.scores - b.scores).max() < 1e-3 for a, b in zip(fine, expected, strict=True)] == [
        True
    ] * 2


def test_candidates_are_full_and_cheaper_plans(tmp_path: Path) -> None:
    runner = load_runner(saved(tmp_path / "m", pretrained.mask2former()))
    plans = [plan.relative_to(runner.full) for plan in runner.candidates()]
    assert plans == ["full", "depth:2", "depth:1", "m@64", "m@64/depth:1"]
    costs = [run_plan(runner, str(plan), [random_image(1)])[0].gflops for plan in runner.candidates()]
    assert max(costs) == costs[0]
