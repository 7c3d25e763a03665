"""The bench measures the event loop of a server that gets chats from another process."""

from pathlib import Path

import pytest

from loadtests.chat import loop_lag
from tests.support.question_sets import chat_model


@pytest.mark.usefixtures("one_thread")
def test_lag_is_measured_while_chats_are_answered(tmp_path: Path) -> None:
    figures = loop_lag.measure(chat_model(tmp_path).runner, (320, 240), 1.0, 0.2)
    assert figures["lag_chats"] >= loop_lag.CONNECTIONS
    assert 0 < figures["event_loop_lag_p50_ms"] <= figures["event_loop_lag_max_ms"]
    assert figures["lag_chat_p50_ms"] > 0 and figures["lag_ready_p99_ms"] > 0
