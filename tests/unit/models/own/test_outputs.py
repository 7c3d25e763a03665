"""What `predict` may return, and one sentence for everything else."""

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import RunFailed
from foveate.core.outcome import Result
from foveate.models.own.outputs import OutputReader, are_probabilities

LABELS = ("cat", "dog")
SCORES = [[0.25, 0.75], [1.0, 0.0]]


def scores_of(outputs: Any, count: int = 2, softmax: bool = False) -> list[list[float]]:
    results = OutputReader("Mine", LABELS, softmax).read(outputs, count)
    rows = []
    for result in results:
        assert isinstance(result, Result), result
        assert result.scores.dtype == np.float32
        rows.append(result.scores.tolist())
    return rows


@pytest.mark.parametrize(
    "outputs",
    [
        SCORES,
        tuple(map(tuple, SCORES)),
        np.array(SCORES),
        np.array(SCORES, np.float16),
        torch.tensor(SCORES, requires_grad=True),
        torch.tensor(SCORES, dtype=torch.bfloat16),
        [np.array(row) for row in SCORES],
        [torch.tensor(row) for row in SCORES],
        [{"dog": 0.75, "cat": 0.25}, {"cat": 1}],
        [{"dog": np.float32(0.75), "cat": torch.tensor(0.25)}, "cat"],
        [SCORES[0], 0],
    ],
)
def test_forms(outputs: Any) -> None:
    assert scores_of(outputs) == SCORES


@pytest.mark.parametrize(
    "outputs",
    [["cat", "dog"], np.array(["cat", "dog"]), np.array(["cat", "dog"], object), [0, 1], np.array([0, 1]),
     torch.tensor([0, 1]), [np.int64(0), {"dog": 1.0}]],
)  # fmt: skip
def test_labels_and_class_indices(outputs: Any) -> None:
    assert scores_of(outputs) == [[1, 0], [0, 1]]


def test_scores_are_answered_as_they_are_unless_they_are_declared_as_logits() -> None:
    assert scores_of([[3.0, -1.0]], 1) == [[3, -1]]
    (row,) = scores_of([[3.0, -1.0]], 1, softmax=True)
    assert row == pytest.approx([0.98201, 0.01799], abs=1e-4)
    assert scores_of([[1e4, 0.0]], 1, softmax=True) == [[1, 0]]  # without overflow


def test_results_and_exceptions_pass() -> None:
    result, error = Result(np.ones(2, np.float32), 3, 1, 0.5), ValueError("no")
    assert OutputReader("Mine", LABELS, False).read([result, error], 2) == [result, error]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\)"),
        (np.zeros(2), r"shape \(2,\)"),
        (np.float32(1), "float32"),
        (np.zeros((2, 2, 2)), "features"),
        ([[0.5, 0.5]], "list of 1"),
        ({"logits": np.zeros((2, 2))}, r"return its \.logits"),
        ("cats", "not a str"),
        (None, "not a NoneType"),
        ((row for row in SCORES), "not a generator"),
    ],
)
def test_outputs_of_another_shape_fail_the_batch(outputs: Any, words: str) -> None:
    with pytest.raises(RunFailed, match=words) as failure:
        OutputReader("Mine", LABELS, False).read(outputs, 2)
    assert "Mine.predict must return (2, C) scores" in failure.value.detail


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([0.1, 0.2, 0.7], "3 scores in place of 2"),
        ("bird", "'bird', which is not in labels"),
        ({"bird": 1.0}, "'bird', which is not in labels"),
        ({"cat": "high"}, "a str as the score of 'cat'"),
        ({"cat": [1, 2]}, "a list as the score"),
        (7, "class index 7 with 2 labels"),
        (-1, "class index -1"),
        (True, "a bool"),
        (object(), "a object"),
        ([[0.5, 0.5]], r"of shape \(1, 2\)"),
        ([], "a list"),
        (["a", "b"], "a list"),
        ([[1], [1, 2]], "a list"),
        ([float("nan"), 1.0], "not finite"),
        ([float("inf"), 1.0], "not finite"),
        ([1e60, 1.0], "not finite"),
        ({"cat": float("nan")}, "not finite"),
        (np.ma.masked_array([0.5, 0.5], [True, False]), "a MaskedArray"),
    ],
)
def test_a_bad_item_fails_alone(item: Any, words: str) -> None:
    good, bad = OutputReader("Mine", LABELS, False).read([[0.5, 0.5], item], 2)
    assert isinstance(good, Result)
    assert isinstance(bad, RunFailed)
    with pytest.raises(RunFailed, match=words):
        raise bad


def test_without_labels_any_number_of_scores_is_read() -> None:
    (result,) = OutputReader("Mine", (), False).read([[0.1, 0.2, 0.7]], 1)
    assert isinstance(result, Result)
    assert len(result.scores) == 3


def test_probabilities() -> None:
    assert are_probabilities(np.array([0, 0.5, 1], np.float32))
    assert not are_probabilities(np.array([-0.5, 0.5], np.float32))
    assert not are_probabilities(np.array([0.5, 1.5], np.float32))
