"""Servers start, answer and end with all of their processes."""

import socket
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.peers.config import PeerConfig
from loadtests.peers.running import PeerServer, processes, running

CONFIG = PeerConfig("tiny.safetensors", "fp32", 0, 200.0, 20.0)
ANSWERS = """
    import http.server, subprocess, sys
    from loadtests.peers.config import PeerConfig
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    class AnswerHandler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
    http.server.HTTPServer(("127.0.0.1", PeerConfig.read().port), AnswerHandler).serve_forever()
"""


def arguments(program: str, tmp_path: Path) -> tuple[PeerServer, Path, PeerConfig, bytes, Path]:
    """Arguments of `running` for a program."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = PeerServer("test", ("-c", textwrap.dedent(program)))
    config = replace(CONFIG, port=port, token=f"test-peers-{time.monotonic_ns()}")
    return server, Path(sys.executable), config, b"jpeg", tmp_path / "log.txt"


def test_a_server_ends_with_all_processes_that_it_started(tmp_path: Path) -> None:
    given = arguments(ANSWERS, tmp_path)
    token = given[2].token
    with running(*given):
        assert len(processes(token)) == 2
    assert processes(token) == []


def test_a_server_that_ends_before_it_answers_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="did not answer"),
        running(*arguments("raise SystemExit", tmp_path)),
    ):
        pass
