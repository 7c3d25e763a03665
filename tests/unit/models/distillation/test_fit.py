"""The training loop: its end by steps or time, its checkpoint, and what it refuses."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foveate.core.errors import SetupError
from foveate.models.distillation import fit as fitting
from foveate.models.distillation.fit import FitProgress, FitSettings, TrainingCheckpoint, fit

pytestmark = pytest.mark.usefixtures("one_thread")
JOB = {"weights": "abc"}


class Regression:
    """Learns y = 2 x, and counts its steps."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Linear(1, 1)
        self.steps: list[int] = []

    def loss(self, step: int, rng: random.Random) -> Tensor:
        self.steps.append(step)
        x = torch.tensor([[rng.random()] for _ in range(8)])
        loss: Tensor = (self.module(x) - 2 * x).square().mean()
        return loss


def quiet(progress: FitProgress) -> None:
    pass


def test_a_training_ends_with_its_steps(tmp_path: Path) -> None:
    task, reports = Regression(), list[FitProgress]()
    checkpoint = TrainingCheckpoint(tmp_path / "x.partial", JOB)
    fit("line", task.module, task.loss, FitSettings(60, 1e9, 0.1), checkpoint, reports.append)
    assert task.steps == list(range(60))
    assert reports[-1].share == 1 and reports[-1].loss < reports[0].loss / 4
    assert [r.share for r in reports] == sorted(r.share for r in reports)


def test_a_training_ends_with_its_time(tmp_path: Path) -> None:
    task = Regression()
    checkpoint = TrainingCheckpoint(tmp_path / "x.partial", JOB)
    fit("line", task.module, task.loss, FitSettings(10**9, 0.2, 0.1), checkpoint, quiet)
    assert 0 < len(task.steps) < 10**6


def test_an_interrupted_training_resumes_after_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_INTERVAL_S", -1.0)
    settings, path, first = FitSettings(40, 1e9, 0.1), tmp_path / "x.partial", Regression()

    def interrupt(progress: FitProgress) -> None:
        if progress.step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("line", first.module, first.loss, settings, TrainingCheckpoint(path, JOB), interrupt)
    second, whole = Regression(1), Regression()
    fit("line", second.module, second.loss, settings, TrainingCheckpoint(path, JOB), quiet)
    assert second.steps == list(range(24, 40))
    fit("line", whole.module, whole.loss, settings, TrainingCheckpoint(tmp_path / "y", JOB), quiet)
    assert torch.allclose(whole.module.weight, second.module.weight, atol=1e-3)
    done = Regression(2)
    fit("line", done.module, done.loss, settings, TrainingCheckpoint(path, JOB), quiet)
    assert done.steps == [] and torch.equal(done.module.weight, second.module.weight)


@pytest.mark.parametrize("junk", [b"", b"junk", None])
def test_a_damaged_checkpoint_or_that_of_another_job_is_not_used(tmp_path: Path, junk: bytes | None) -> None:
    path = tmp_path / "x.partial"
    TrainingCheckpoint(path, {"weights": "other"}).save("line", {"step": 3})
    if junk is not None:
        path.write_bytes(junk)
    checkpoint = TrainingCheckpoint(path, JOB)
    assert checkpoint.parts == {} and not checkpoint.resumed


def test_a_loss_that_is_not_finite_and_a_file_in_the_way_are_refused(tmp_path: Path) -> None:
    task, settings = Regression(), FitSettings(5, 1e9, 0.1)
    checkpoint = TrainingCheckpoint(tmp_path / "x.partial", JOB)
    with pytest.raises(SetupError, match="the loss of the line is nan at step 1"):
        fit("line", task.module, lambda *_: task.module.weight.sum() * torch.nan, settings, checkpoint, quiet)
    task = Regression()
    (tmp_path / "file").write_text("")
    blocked = TrainingCheckpoint(tmp_path / "file" / "x.partial", JOB)
    with pytest.raises(SetupError, match="cannot write"):
        fit("line", task.module, task.loss, settings, blocked, quiet)
