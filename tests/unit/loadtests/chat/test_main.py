"""The parts of the bench of chats."""

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.__main__ import PARTS, parts
from loadtests.chat.device import SharedDevice
from loadtests.chat.workload import ChatQuestion


@pytest.mark.usefixtures("one_thread")
def test_all_parts_are_offered(runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]) -> None:
    measured = parts(runner, device, asked, 1, 0)
    assert tuple(measured) == PARTS
