"""The files of a training run."""

import json
from pathlib import Path

import pytest
import torch

from training.run_files import append_row, save_atomically, truncate_log


def test_a_checkpoint_replaces_the_old_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    save_atomically(path, {"step": 1})
    save_atomically(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["head.pt"]


def test_a_state_that_cannot_be_saved_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    save_atomically(path, {"step": 1})
    with pytest.raises((AttributeError, TypeError)):
        save_atomically(path, {"step": lambda: 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_the_log_is_truncated_after_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    truncate_log(0, log)
    assert not log.exists()
    for step in (50, 100, 150):
        append_row(log, {"step": step})
    truncate_log(100, log)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [50, 100]
    assert capsys.readouterr().out.count("step") == 3
