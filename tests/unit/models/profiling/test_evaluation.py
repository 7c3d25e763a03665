"""What a plan keeps, by its answers: top-1 and agreement, mean intersection over union."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.core.outcome import ClassMaps, Result
from foveate.models.profiling.evaluation import MeanIoU, Top1, mask_from_maps, read_masks

LOST = ValueError("lost")


def named(*classes: int) -> list[Result | Exception]:
    return [LOST if c < 0 else Result(np.eye(4, dtype=np.float32)[c], 5, 12, 1.0) for c in classes]


def test_accuracy_is_compared_with_fulls() -> None:
    evaluator = Top1((0, 1, 2, 3))
    evaluator.update(named(0, 1))
    evaluator.update(named(2, 2))
    assert evaluator.result() == (1.0, 0.75)
    evaluator.update(named(0, 1, -1, 2))
    assert evaluator.result() == (0.5 / 0.75, 0.5)
    assert evaluator.full == (0, 1, 2, 2)


def test_without_labels_full_is_right() -> None:
    evaluator = Top1(None)
    evaluator.update(named(0, 1, -1, 3))
    assert evaluator.result() == (1.0, None)
    evaluator.update(named(0, 2, 1, 3))
    assert evaluator.result() == (2 / 3, None)
    resumed = Top1(None, evaluator.full)
    resumed.update(named(0, 2, 1, 3))
    assert resumed.result() == (2 / 3, None)


def test_a_full_that_is_always_wrong_is_refused() -> None:
    evaluator = Top1((0, 0))
    evaluator.update(named(1, 2))
    with pytest.raises(SetupError, match="wrongly"):
        evaluator.result()


def approx(quality: float, accuracy: float | None) -> Any:
    return pytest.approx((quality, accuracy))


def outlined(*masks: NDArray[np.int64] | None) -> list[Result | Exception]:
    found: list[Result | Exception] = []
    for mask in masks:
        if mask is None:
            found.append(LOST)
            continue
        classes = tuple(np.unique(mask).tolist())
        scores = np.stack([(mask == c) * 2.0 for c in classes]).astype(np.float16)
        found.append(Result(np.zeros(3, np.float32), 5, 12, 1.0, maps=ClassMaps(classes, scores)))
    return found


LEFT = np.array([[1, 1, 0, 0]] * 4)
RIGHT = np.array([[0, 0, 2, 2]] * 4)
NOTHING = np.zeros((4, 4), int)


def test_accuracy_is_the_mean_over_classes_of_all_pictures_together() -> None:
    evaluator = MeanIoU([LEFT.astype(np.uint8), RIGHT.astype(np.uint8)], 3)
    evaluator.update(outlined(LEFT, RIGHT))
    assert evaluator.result() == (1.0, 1.0)
    evaluator.update(outlined(LEFT))
    evaluator.update(outlined(NOTHING))
    # Background: 8 + 8 of 8 + 16; the first class all, the second none.
    assert evaluator.result() == approx((16 / 24 + 1 + 0) / 3, (16 / 24 + 1 + 0) / 3)
    evaluator.update(outlined(LEFT, None))
    assert evaluator.result()[1] == pytest.approx((16 / 24 + 1 + 0) / 3), "what failed shows nothing"


def test_masks_are_compared_with_fulls_where_nobody_drew_any() -> None:
    evaluator = MeanIoU(None, 3)
    evaluator.update(outlined(LEFT, RIGHT))
    assert evaluator.result() == (1.0, None)
    evaluator.update(outlined(LEFT, RIGHT))
    assert evaluator.result() == (1.0, None)
    evaluator.update(outlined(LEFT, NOTHING))
    assert evaluator.result() == approx((16 / 24 + 1 + 0) / 3, None)


def test_quality_is_what_is_kept_of_fulls_accuracy() -> None:
    evaluator = MeanIoU([LEFT.astype(np.uint8)], 3, full=0.5)
    evaluator.update(outlined(NOTHING))
    assert evaluator.result() == approx(0.5, 0.25)


def test_scores_are_scaled_before_classes_are_compared() -> None:
    maps = ClassMaps((0, 5), np.array([[[1.0, -1.0]], [[-1.0, 1.0]]], np.float16))
    assert mask_from_maps(maps, (1, 8)).tolist() == [[0, 0, 0, 0, 5, 5, 5, 5]]
    assert mask_from_maps(None, (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_a_mask_is_read_as_it_was_drawn() -> None:
    data = io.BytesIO()
    Image.fromarray(RIGHT.astype(np.uint8)).save(data, "PNG")
    assert read_masks(data.getvalue(), 4)[0].tolist() == RIGHT.tolist()
    assert read_masks(data.getvalue(), 8)[0].tolist() == RIGHT.repeat(2, 0).repeat(2, 1).tolist()
    film = io.BytesIO()
    Image.fromarray(np.concatenate([RIGHT, 2 * RIGHT]).astype(np.uint8)).save(film, "PNG")
    first, second = read_masks(film.getvalue(), 4, 2)
    assert first.tolist() == RIGHT.tolist() and second.tolist() == (2 * RIGHT).tolist()
