"""The quality and the accuracy of a plan: top-1, agreement with full, mean IoU, and nearest neighbours."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.core.outcome import ClassMaps, Result
from foveate.models.profiling import evaluation
from foveate.models.profiling.evaluation import (
    MeanIoU,
    NeighbourAgreement,
    Top1,
    mask_from_maps,
    read_masks,
)

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


def embeddings_of(*vectors: tuple[float, float] | None) -> list[Result | Exception]:
    return [FAILURE if v is None else Result(np.array(v, np.float32), 5, 12, 1.0) for v in vectors]


def test_quality_of_embeddings_is_the_share_of_equal_nearest_neighbours() -> None:
    full = ((1.0, 0.0), (0.9, 0.1), (0.0, 1.0), (0.1, 0.9))
    evaluator = NeighbourAgreement()
    evaluator.update(embeddings_of(*full[:3]))
    evaluator.update(embeddings_of(full[3]))
    assert evaluator.result() == (1.0, None)
    evaluator.update(embeddings_of(*((3 * x, 3 * y) for x, y in full)))
    assert evaluator.result() == (1.0, None), "the length of an embedding does not count"
    evaluator.update(embeddings_of(full[0], full[1], (1.0, 0.0), None))
    assert evaluator.result() == (0.5, None), "one finds another image, and one has no embedding"


def test_query_of_a_plan_is_searched_among_the_embeddings_of_full() -> None:
    evaluator = NeighbourAgreement()
    full = ((1.0, 0.0), (0.9, 0.1), (0.0, 1.0), (0.1, 0.9))
    evaluator.update(embeddings_of(*full))
    evaluator.result()
    # Rotated alike, the embeddings agree with each other, but not with those of full.
    evaluator.update(embeddings_of(*((-y, x) for x, y in full)))
    quality, _ = evaluator.result()
    assert quality < 1


def test_images_without_an_embedding_of_full_do_not_count() -> None:
    evaluator = NeighbourAgreement()
    vectors = ((1.0, 0.0), None, (0.9, 0.1), (0.0, 1.0), (0.1, 0.9))
    evaluator.update(embeddings_of(*vectors))
    assert evaluator.result() == (1.0, None)
    evaluator.update(embeddings_of((1.0, 0.0), (1.0, 0.0), None, (0.0, 1.0), (0.1, 0.9)))
    assert evaluator.result() == (0.75, None)


def test_many_images_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    results: list[Result | Exception] = [
        Result(row, 5, 12, 1.0) for row in random.normal(size=(23, 4)).astype(np.float32)
    ]
    noisy: list[Result | Exception] = [
        Result((r.scores + random.normal(0, 0.3, 4)).astype(np.float32), 5, 12, 1.0)
        for r in results
        if isinstance(r, Result)
    ]
    qualities = []
    for chunk in (1024, 5):
        monkeypatch.setattr(evaluation, "NEIGHBOUR_CHUNK", chunk)
        evaluator = NeighbourAgreement()
        evaluator.update(results)
        assert evaluator.result() == (1.0, None)
        evaluator.update(noisy)
        qualities.append(evaluator.result()[0])
    assert qualities[0] == qualities[1] and 0 < qualities[0] < 1


def test_two_images_have_no_nearest_neighbours_to_compare() -> None:
    evaluator = NeighbourAgreement()
    evaluator.update(embeddings_of((1.0, 0.0), (0.0, 1.0), None))
    with pytest.raises(SetupError, match=r"full embeds 2 image\(s\), and nearest neighbours take at least 3"):
        evaluator.result()
