"""The quality and the accuracy of a plan: top-1, agreement with full, and mean IoU."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.evaluation import ItemScorer, MeanIoU, Top1, mask_from_maps, read_masks
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.measuring import CONFIG, decode, noise_images, quiet, tiny

FAILURE = ValueError("failed")


def results_of(*classes: int) -> list[Result | Exception]:
    return [FAILURE if c < 0 else Result(np.eye(4, dtype=np.float32)[c], 5, 12, 1.0) for c in classes]


def test_quality_is_accuracy_relative_to_full() -> None:
    evaluator = Top1((0, 1, 2, 3))
    evaluator.update(results_of(0, 1))
    evaluator.update(results_of(2, 2))
    assert evaluator.result() == (1.0, 0.75)
    evaluator.update(results_of(0, 1, -1, 2))
    assert evaluator.result() == (0.5 / 0.75, 0.5)
    assert evaluator.full == (0, 1, 2, 2)


def test_without_labels_quality_is_agreement_with_full() -> None:
    evaluator = Top1(None)
    evaluator.update(results_of(0, 1, -1, 3))
    assert evaluator.result() == (1.0, None)
    evaluator.update(results_of(0, 2, 1, 3))
    assert evaluator.result() == (2 / 3, None)
    resumed = Top1(None, evaluator.full)
    resumed.update(results_of(0, 2, 1, 3))
    assert resumed.result() == (2 / 3, None)


def test_a_full_plan_that_is_always_wrong_is_refused() -> None:
    evaluator = Top1((0, 0))
    evaluator.update(results_of(1, 2))
    with pytest.raises(SetupError, match="a wrong class"):
        evaluator.result()


def approx(quality: float, accuracy: float | None) -> Any:
    return pytest.approx((quality, accuracy))


def results_with_masks(*masks: NDArray[np.int64] | None) -> list[Result | Exception]:
    results: list[Result | Exception] = []
    for mask in masks:
        if mask is None:
            results.append(FAILURE)
            continue
        classes = tuple(np.unique(mask).tolist())
        scores = np.stack([(mask == c) * 2.0 for c in classes]).astype(np.float16)
        results.append(Result(np.zeros(3, np.float32), 5, 12, 1.0, maps=ClassMaps(classes, scores)))
    return results


LEFT = np.array([[1, 1, 0, 0]] * 4)
RIGHT = np.array([[0, 0, 2, 2]] * 4)
EMPTY = np.zeros((4, 4), int)


def test_mean_iou_sums_over_images_and_averages_over_classes() -> None:
    evaluator = MeanIoU([LEFT.astype(np.uint8), RIGHT.astype(np.uint8)], 3)
    evaluator.update(results_with_masks(LEFT, RIGHT))
    assert evaluator.result() == (1.0, 1.0)
    evaluator.update(results_with_masks(LEFT))
    evaluator.update(results_with_masks(EMPTY))
    # Background: 8 + 8 of 8 + 16; the first class all, the second none.
    assert evaluator.result() == approx((16 / 24 + 1 + 0) / 3, (16 / 24 + 1 + 0) / 3)
    evaluator.update(results_with_masks(LEFT, None))
    assert evaluator.result()[1] == pytest.approx((16 / 24 + 1 + 0) / 3), (
        "a failed answer counts as background"
    )


def test_without_masks_the_masks_of_full_are_the_truth() -> None:
    evaluator = MeanIoU(None, 3)
    evaluator.update(results_with_masks(LEFT, RIGHT))
    assert evaluator.result() == (1.0, None)
    evaluator.update(results_with_masks(LEFT, RIGHT))
    assert evaluator.result() == (1.0, None)
    evaluator.update(results_with_masks(LEFT, EMPTY))
    assert evaluator.result() == approx((16 / 24 + 1 + 0) / 3, None)


def test_quality_is_mean_iou_relative_to_a_known_full() -> None:
    evaluator = MeanIoU([LEFT.astype(np.uint8)], 3, full=0.5)
    evaluator.update(results_with_masks(EMPTY))
    assert evaluator.result() == approx(0.5, 0.25)


def test_scores_are_resized_before_the_best_class_is_chosen() -> None:
    maps = ClassMaps((0, 5), np.array([[[1.0, -1.0]], [[-1.0, 1.0]]], np.float16))
    assert mask_from_maps(maps, (1, 8)).tolist() == [[0, 0, 0, 0, 5, 5, 5, 5]]
    assert mask_from_maps(None, (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_masks_are_read_and_resized_without_interpolation() -> None:
    data = io.BytesIO()
    Image.fromarray(RIGHT.astype(np.uint8)).save(data, "PNG")
    assert read_masks(data.getvalue(), 4)[0].tolist() == RIGHT.tolist()
    assert read_masks(data.getvalue(), 8)[0].tolist() == RIGHT.repeat(2, 0).repeat(2, 1).tolist()
    video = io.BytesIO()
    Image.fromarray(np.concatenate([RIGHT, 2 * RIGHT]).astype(np.uint8)).save(video, "PNG")
    first, second = read_masks(video.getvalue(), 4, 2)
    assert first.tolist() == RIGHT.tolist() and second.tolist() == (2 * RIGHT).tolist()


def test_single_items_are_scored_by_their_labels() -> None:
    scorer = ItemScorer(TorchRunner(tiny()), noise_images([0, 1, 2] * 8))
    assert scorer.unknown([2, 4]) == [2, 4]
    scorer.learn([2, 4, 7], results_of(0, 0, 0))
    assert scorer.unknown([2, 3]) == [3]
    assert scorer.scores([2, 4, 7], results_of(2, 3, -1)) == [1.0, 0.0, 0.0]


def test_without_labels_single_items_are_scored_by_the_answers_of_full() -> None:
    scorer = ItemScorer(TorchRunner(tiny()), noise_images())
    scorer.learn([5, 6, 9], results_of(3, 1, -1))
    assert scorer.scores([5, 6, 9], results_of(3, 3, 2)) == [1.0, 0.0, 1.0], "full failed on the last"


@pytest.mark.parametrize("with_masks", [True, False])
def test_single_masks_are_scored_by_their_mean_iou(with_masks: bool) -> None:
    spec = DenseSpec(classes=6, width=8, fine=8)
    torch.manual_seed(0)
    model = ElasticViT(CONFIG, dense=spec).eval()
    assert isinstance(model.dense, DenseHead)
    runner = TorchRunner(Checkpoint("seg", CONFIG, dense=spec, model=model))
    items = (b"0", b"1")
    full = run_all(runner, runner.full, items)
    masks = None
    if with_masks:
        masks = tuple(png(mask_from_maps(r.maps, (64, 64))) for r in full if isinstance(r, Result))
    scorer = ItemScorer(runner, DecodedDataset(Dataset("noise", items, None, masks), decode, quiet))
    scorer.learn([0, 1], full)
    assert scorer.scores([0, 1], full) == [1.0, 1.0]
    fewer = scorer.scores([0, 1], run_all(runner, Plan.parse("depth:1", runner.full), items))
    assert all(0 <= score < 1 for score in fewer)
    assert scorer.scores([0], [FAILURE])[0] < 1


def run_all(runner: TorchRunner, plan: Plan, items: tuple[bytes, ...]) -> list[Result | Exception]:
    return list(runner.run(runner.stack([decode(item) for item in items], plan), plan))


def png(mask: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
