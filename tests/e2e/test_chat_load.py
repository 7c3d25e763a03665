"""The load test of chats against a real server: every chat is accounted for, and its tokens are timed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.load.launch import launch
from tests.e2e.serving import ServerProcess, serving
from tests.support import chat_models

SECONDS, RATE = 4, 8
CHATS = {"model": chat_models.NAME, "max_tokens": {"4": 1, "16": 1}, "repeated": 0.5, "follow_ups": 0.4}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("chat")
    chat_models.write(folder)
    with serving(folder, "--model", str(folder)) as server:
        yield server


def test_a_short_run_accounts_for_every_chat(served: ServerProcess, tmp_path: Path) -> None:
    html = tmp_path / "run.html"
    options = f"--shape poisson --rate {RATE} --seconds {SECONDS} --patience-s 60".split()
    mix = {"soon": {"deadline_ms": 30_000, "ttft_ms": 30_000}, "at once": {"deadline_ms": 1}}
    (run,) = launch(
        "--url", f"{served.client.base_url}/v1", *options, "--chat", json.dumps(CHATS),
        "--mix", json.dumps(mix), "--html", str(html),
    )  # fmt: skip
    figures = run.figures()
    assert figures["offered"] == len(run.records) > 10
    soon = [record for record in run.records if record.slo_class == "soon"]
    assert {record.kind for record in soon} == {"in time"}
    assert {r.kind for r in run.records if r.slo_class == "at once"} <= {"refused", "expired"}
    for record in soon:
        chat = record.chat
        assert chat is not None and chat.first_token_s is not None and chat.prompt_tokens
        assert 0 < chat.first_token_s <= record.latency_s
        assert 1 <= chat.tokens <= chat.max_tokens
        assert chat.finish == "stop" or chat.tokens == chat.max_tokens
        assert chat.visual_tokens == 16
        assert record.rung == f"{chat_models.NAME}@64/fp32" and record.timings_ms["total"] > 0
    # Most of the repeated pictures and follow-ups find the picture's part of the prompt in the cache.
    assert any(record.chat and record.chat.cached_tokens for record in soon)
    assert "<h2>Chats</h2>" in html.read_text()
