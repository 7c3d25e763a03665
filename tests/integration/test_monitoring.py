"""The recording rules, the dashboard and the autoscaler on a real Prometheus that scrapes real metrics."""

import itertools
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest, start_http_server
from typer.testing import CliRunner

from foveate.autoscaler.policy import ScalingConfig
from foveate.autoscaler.prometheus import PrometheusClient, PrometheusError
from foveate.autoscaler.service import Autoscaler, Queries
from foveate.core.metrics import Metrics
from foveate.gateway.cli.main import app
from tests.integration.conftest import Serve
from tests.support.chat_engines import RecordedChatRunner
from tests.support.chat_gateway import body as chat_body
from tests.support.fake_runner import RUNGS, FakeRunner

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring/rules.yml"
INTERVAL_S = 1.0


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return path


def wait_until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"the condition is not true after {limit_s:g} s"
        time.sleep(0.1)


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[str]:
    """The URL of a Prometheus that scrapes this port every second, with the shipped rules."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own_port = probe.getsockname()[1]
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: foveate, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    command = [
        program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own_port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{own_port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):  # noqa: S310
                return True
        except OSError:
            return False

    try:
        wait_until(ready)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


class DemandSource:
    """Metrics on a port of their own, with a full-quality demand that the test sets."""

    def __init__(self) -> None:
        self.metrics, self.demand = Metrics(), 0.0
        self.server, _ = start_http_server(0, "127.0.0.1", self.metrics.registry)
        self.port = self.server.server_port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping.wait(0.05):
            now = time.monotonic()
            self.metrics.demand.labels("a").inc(0.75 * self.demand * (now - last))
            self.metrics.demand.labels("b").inc(0.25 * self.demand * (now - last))
            last = now

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def source() -> Iterator[DemandSource]:
    running = DemandSource()
    yield running
    running.close()


@pytest.fixture(scope="module")
def url(source: DemandSource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), source.port) as address:
        yield address


def test_the_rules_are_valid_and_pass_their_tests() -> None:
    for command in ("check rules rules.yml", "test rules rules_test.yml", "check config prometheus.yml"):
        arguments = [program("promtool"), *command.split()]
        result = subprocess.run(arguments, cwd=RULES.parent, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_rules_use_only_metrics_that_exist() -> None:
    text = generate_latest(Metrics().registry).decode()
    names = set(re.findall(r"# TYPE (\w+) ", text))
    for name in set(re.findall(r"\b(foveate_\w+)", RULES.read_text())):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in names, name


MAYBE_EMPTY = ("foveate_autoscaler", "foveate_cache_errors", "foveate_invalid_results", "foveate_refused")
"""Metrics without a value in a run without failures and without an autoscaler."""


def send_until(stopping: threading.Event, url: str) -> None:
    """Send images with a deadline, with a cheap plan, repeated ones, and ones that cannot be in time; and
    chats about a picture."""
    with httpx.Client(base_url=url, trust_env=False) as client:
        for number in itertools.count():
            if stopping.wait(0.02):
                return
            headers = ({"x-slo-ms": "2000"}, {"x-plan": "evit:0.5"}, {}, {"x-slo-ms": "0.01"})[number % 4]
            body = b"same" if number % 3 == 0 else b"image %d" % number
            client.post("/classify", content=body, headers={"content-type": "image/jpeg"} | headers)
            client.post("/v1/chat/completions", json=chat_body())


def test_every_query_of_the_dashboard_has_a_value_in_a_real_run(tmp_path: Path, serve: Serve) -> None:
    dashboard = json.loads((ROOT / "monitoring/grafana/foveate.json").read_text())
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 25 and len({panel["title"] for panel in panels}) == len(panels)
    runner = FakeRunner()
    runner.card = replace(runner.card, weights="w", ladder=RUNGS)
    served = serve(runner, [RecordedChatRunner(slots=2, slot_tokens=256)])
    stopping = threading.Event()
    sender = threading.Thread(target=send_until, args=(stopping, served.url))
    sender.start()
    try:
        with prometheus(tmp_path, served.port) as url:
            client = PrometheusClient(url)
            short_queries = [
                query.replace("$model", ".*").replace("[5m]", "[10s]").replace("[1m]", "[10s]")
                for query in queries
            ]
            expected = [query for query in short_queries if not any(name in query for name in MAYBE_EMPTY)]

            def has_value(query: str) -> bool:
                series = client.request("query", {"query": query})
                return any(math.isfinite(float(one["value"][1])) for one in series)

            missing = set(expected)

            def complete() -> bool:
                missing.difference_update([query for query in missing if has_value(query)])
                return not missing

            end = time.monotonic() + 30
            while not complete():
                assert time.monotonic() < end, missing
                time.sleep(0.2)
            for query in set(short_queries) - set(expected):
                client.request("query", {"query": query})
    finally:
        stopping.set()
        sender.join()


def test_decisions_follow_the_demand_that_prometheus_measures(source: DemandSource, url: str) -> None:
    queries = Queries("sum(rate(foveate_full_quality_seconds_total[5s]))")
    config = ScalingConfig(1, 9, replica_startup_s=2, downscale_delay_s=8)
    autoscaler = Autoscaler(PrometheusClient(url), config, INTERVAL_S, queries)
    desired: list[int] = []

    def step_gives(replicas: int) -> bool:
        decision = autoscaler.step()
        desired.append(decision.replicas if decision else -1)
        time.sleep(INTERVAL_S)
        return desired[-1] == replicas

    value = autoscaler.registry.get_sample_value
    source.demand = 2.7
    wait_until(lambda: step_gives(4) and abs((value("foveate_autoscaler_demand_replicas") or 0) - 2.7) < 0.3)
    assert max(desired) <= 6
    assert value("foveate_autoscaler_desired_replicas") == 4
    source.demand = 0.5
    wait_until(lambda: step_gives(1), 40)
    restarted = Autoscaler(
        PrometheusClient(url), ScalingConfig(1, 9, downscale_delay_s=300), INTERVAL_S, queries
    )
    decision = restarted.step()
    assert decision is not None
    assert len(restarted.history) > 10, "demand from before the start counts too"


def test_the_command_prints_one_decision_with_its_reason(source: DemandSource, url: str) -> None:
    source.demand = 2.0
    time.sleep(4)
    demand = "sum(rate(foveate_full_quality_seconds_total[3s]))"
    result = CliRunner().invoke(app, ["autoscaler", url, "--once", "--demand", demand])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"\d+ replicas: .+", result.output.strip().replace("\n", " ")), result.output


@pytest.mark.parametrize(
    ("query", "message"), [("sum(", "answered 400"), ("foveate_full_quality_seconds_total", "gives 2 series")]
)
def test_a_query_that_fails_is_an_error_and_no_decision(url: str, query: str, message: str) -> None:
    client = PrometheusClient(url)
    wait_until(lambda: client.query_value("count(foveate_full_quality_seconds_total)") == 2)
    with pytest.raises(PrometheusError, match=message):
        client.query_value(query)
    autoscaler = Autoscaler(client, ScalingConfig(), INTERVAL_S, Queries(query))
    assert autoscaler.step() is None
    assert autoscaler.registry.get_sample_value("foveate_autoscaler_failures_total") == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://127.0.0.1:{port}"])
def test_a_server_that_is_not_prometheus_gives_no_decision(source: DemandSource, address: str) -> None:
    client = PrometheusClient(address.format(port=source.port))
    with pytest.raises(PrometheusError):
        client.query_value("up")
    assert Autoscaler(client, ScalingConfig(), INTERVAL_S).step() is None
