"""A tiny model, its device, and questions for the bench of chats."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import SharedDevice
from loadtests.chat.workload import ChatQuestion, chat_questions
from tests.support.question_sets import answered, chat_model


@pytest.fixture
def device(one_thread: None) -> Iterator[SharedDevice]:
    """A device whose thread ends with the test."""
    shared = SharedDevice()
    yield shared
    shared.shut_down()


@pytest.fixture
def runner(tmp_path: Path, one_thread: None) -> ChatRunner:
    """A model with four slots and random weights."""
    return chat_model(tmp_path).runner


@pytest.fixture
def asked(tmp_path: Path, runner: ChatRunner) -> list[ChatQuestion]:
    """Six questions about three pictures. The answers are those of full, but for one of them."""
    return chat_questions(answered(tmp_path / "data", runner), 6)
