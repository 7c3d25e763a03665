"""`foveate autoscaler`: its options, and their old names."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from foveate.autoscaler import service
from foveate.autoscaler.policy import ScalingConfig
from foveate.core.errors import SetupError
from foveate.gateway.cli.autoscaler import RENAMED_OPTIONS
from foveate.gateway.cli.main import app


class DemandHandler(BaseHTTPRequestHandler):
    """Answers every instant query with 3.2, and every range query with no series."""

    def do_GET(self) -> None:
        instant = "query_range" not in self.path
        scalar: dict[str, object] = {"resultType": "scalar", "result": [0, "3.2"]}
        empty: dict[str, object] = {"resultType": "matrix", "result": []}
        body = json.dumps({"status": "success", "data": scalar if instant else empty}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The test's output stays clean."""


@pytest.fixture
def prometheus() -> Iterator[str]:
    """The URL of a server with Prometheus' API."""
    server = HTTPServer(("127.0.0.1", 0), DemandHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ScalingConfig, float]]:
    """The configuration and the interval of each autoscaler that is made."""
    made: list[tuple[ScalingConfig, float]] = []
    real = service.Autoscaler.__init__

    def recorded(self: service.Autoscaler, *arguments: Any) -> None:
        made.append((arguments[1], arguments[2]))
        real(self, *arguments)

    monkeypatch.setattr(service.Autoscaler, "__init__", recorded)
    return made


NEW = (
    "--min-replicas", "2", "--max-replicas", "7", "--replica-startup-s", "60",
    "--downscale-delay-s", "90", "--interval-s", "5",
)  # fmt: skip
OLD = ("--least", "2", "--most", "7", "--start-s", "60", "--calm-s", "90", "--every-s", "5")
EXPECTED = (ScalingConfig(2, 7, replica_startup_s=60, downscale_delay_s=90), 5.0)


def test_a_decision_is_printed_once(prometheus: str, configs: list[tuple[ScalingConfig, float]]) -> None:
    done = CliRunner().invoke(app, ["autoscaler", prometheus, "--once"])
    assert done.exit_code == 0, done.output
    assert "replicas: " in done.stdout
    assert configs == [(ScalingConfig(), 15.0)]


def test_options_configure_the_policy(
    prometheus: str, configs: list[tuple[ScalingConfig, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert CliRunner().invoke(app, ["autoscaler", prometheus, "--once", *NEW]).exit_code == 0
    assert configs == [EXPECTED]
    assert "is now called" not in caplog.text


def test_old_names_work_with_one_warning_each(
    prometheus: str, configs: list[tuple[ScalingConfig, float]], caplog: pytest.LogCaptureFixture
) -> None:
    assert CliRunner().invoke(app, ["autoscaler", prometheus, "--once", *OLD]).exit_code == 0
    assert configs == [EXPECTED]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"{old} is now called {new}; the old name will stop working"
        for old, new in zip(OLD[::2], NEW[::2], strict=True)
    ]


@pytest.mark.parametrize(("old", "new"), list(zip(OLD[::2], NEW[::2], strict=True)))
def test_an_option_under_both_names_is_refused(old: str, new: str) -> None:
    done = CliRunner().invoke(app, ["autoscaler", "http://127.0.0.1:1", "--once", old, "3", new, "3"])
    assert isinstance(done.exception, SetupError)
    assert done.exception.detail == f"{old} is the old name of {new}: pass {new} alone"


def test_the_help_shows_the_current_names_only() -> None:
    text = CliRunner().invoke(app, ["autoscaler", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for old, new in RENAMED_OPTIONS.items():
        assert f"--{new.replace('_', '-')}" in text
        assert f"--{old.replace('_', '-')} " not in text


def test_without_prometheus_there_is_no_decision_and_status_1() -> None:
    done = CliRunner().invoke(app, ["autoscaler", "http://127.0.0.1:1", "--once"])
    assert done.exit_code == 1


def test_bounds_that_contradict_are_refused() -> None:
    arguments = ["autoscaler", "http://127.0.0.1:1", "--once", "--min-replicas", "5", "--max-replicas", "2"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, SetupError)
