"""The parts of the bench of chats."""

import json
from pathlib import Path

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.__main__ import PARTS, earlier, parts
from loadtests.chat.device import SharedDevice
from loadtests.chat.workload import ChatQuestion


@pytest.mark.usefixtures("one_thread")
def test_all_parts_are_offered(runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]) -> None:
    measured = parts(runner, device, asked, 1, 0)
    assert tuple(measured) == PARTS


def test_figures_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    assert earlier(tmp_path) == {}
    (tmp_path / "chat.json").write_text(json.dumps({"greedy_equal": 1.0}))
    assert earlier(tmp_path) == {"greedy_equal": 1.0}
