"""Training a head: it learns, logs, and resumes with the same result."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training import fit as fitting
from training.fit import TrainingRun, fit

pytestmark = pytest.mark.usefixtures("one_thread")


def new_head() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(4, 2)


def train(folder: Path, steps: int, head: nn.Linear, stop_at: int = -1) -> list[dict[str, float]]:
    """Train a head to separate two classes. Returns the log."""

    def loss_at(step: int, rng: random.Random) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        x = torch.randn(32, 4, generator=generator)
        return nn.functional.cross_entropy(head(x).float(), (x[:, 0] > 0).long())

    def checks() -> dict[str, float]:
        assert not head.training
        return {"norm": float(head.weight.detach().norm())}

    fit(TrainingRun(folder, "head", steps, 0.05, check_every=10), head, loss_at, checks)
    return [json.loads(line) for line in (folder / "head.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LOG_EVERY", 5)


def test_the_loss_falls_and_checks_are_logged(tmp_path: Path) -> None:
    log = train(tmp_path / "run", 60, new_head())
    assert [row["step"] for row in log] == list(range(5, 61, 5))
    assert [row["step"] for row in log if "norm" in row] == list(range(10, 61, 10))
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_an_interrupted_run_resumes_with_the_same_result(tmp_path: Path) -> None:
    whole, resumed = new_head(), new_head()
    expected = train(tmp_path / "whole", 40, whole)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", 40, resumed, stop_at=27)
    again = new_head()
    log = train(tmp_path / "part", 40, again)
    assert torch.equal(again.weight, whole.weight)
    assert [row["step"] for row in log] == [row["step"] for row in expected]
    assert log[-1]["norm"] == expected[-1]["norm"]


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    train(tmp_path, 10, new_head())
    before = (tmp_path / "head.jsonl").read_text()
    train(tmp_path, 10, new_head(), stop_at=0)
    assert (tmp_path / "head.jsonl").read_text() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    head = new_head()
    with pytest.raises(RuntimeError, match="the loss is nan at step 1"):
        fit(TrainingRun(tmp_path, "head", 5, 0.1), head, lambda *_: head.weight.sum() * math.nan, dict)
