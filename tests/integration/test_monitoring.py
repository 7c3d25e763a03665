"""Rules and the autoscaler, on a real Prometheus that scrapes real metrics."""

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
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from typer.testing import CliRunner

from foveate.autoscaler.policy import ScalingConfig
from foveate.autoscaler.prometheus import PrometheusClient, PrometheusError
from foveate.autoscaler.service import Autoscaler, Queries, publish
from foveate.core.metrics import Metrics
from foveate.gateway.cli.main import app
from tests.integration.conftest import Serve
from tests.support.fake_runner import RUNGS, FakeRunner

ROOT = Path(__file__).parents[2]
RULES = ROOT / "monitoring/rules.yml"
EVERY_S = 1.0


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


def until(true: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[str]:
    """The URL of a Prometheus that scrapes this port every second, under the shipped rules."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: foveate, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    command = [
        tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{own}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):  # noqa: S310
                return True
        except OSError:
            return False

    try:
        until(ready)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


class Busy:
    """Metrics on a port of their own, whose demand goes up as fast as is said."""

    def __init__(self) -> None:
        self.metrics, self.rate = Metrics(), 0.0
        self.server, _ = start_http_server(0, "127.0.0.1", self.metrics.registry)
        self.port = self.server.server_port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.05):
            now = time.monotonic()
            self.metrics.demand.labels("a").inc(0.75 * self.rate * (now - last))
            self.metrics.demand.labels("b").inc(0.25 * self.rate * (now - last))
            last = now

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def busy() -> Iterator[Busy]:
    found = Busy()
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(busy: Busy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), busy.port) as found:
        yield found


def test_rules_are_valid_and_do_what_their_tests_say() -> None:
    for command in ("check rules rules.yml", "test rules rules_test.yml", "check config prometheus.yml"):
        called = [tool("promtool"), *command.split()]
        found = subprocess.run(called, cwd=RULES.parent, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_rules_name_metrics_that_there_are() -> None:
    text = generate_latest(Metrics().registry).decode()
    there = set(re.findall(r"# TYPE (\w+) ", text))
    for name in set(re.findall(r"\b(foveate_\w+)", RULES.read_text())):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in there, name


QUIET = ("foveate_autoscaler", "foveate_cache_errors", "foveate_refused")
"""What has nothing to show where all is well, and nobody scales."""


def test_every_query_of_the_dashboard_shows_something_of_a_real_run(tmp_path: Path, serve: Serve) -> None:
    board = json.loads((ROOT / "monitoring/grafana/foveate.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > 25 and len({panel["title"] for panel in board["panels"]}) == len(board["panels"])
    runner = FakeRunner()
    runner.card = replace(runner.card, weights="w", ladder=RUNGS)
    served = serve(runner)
    stop = threading.Event()

    def ask() -> None:
        """Some with a promise, some under a lesser plan, some that come again, some that nothing can keep."""
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            for number in itertools.count():
                if stop.wait(0.02):
                    return
                headers = ({"x-slo-ms": "2000"}, {"x-plan": "evit:0.5"}, {}, {"x-slo-ms": "0.01"})[number % 4]
                body = b"same" if number % 3 == 0 else b"picture %d" % number
                client.post("/classify", content=body, headers={"content-type": "image/jpeg"} | headers)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with prometheus(tmp_path, served.port) as url:
            plain = [
                query.replace("$model", ".*").replace("[5m]", "[10s]").replace("[1m]", "[10s]")
                for query in queries
            ]
            there = [query for query in plain if not any(name in query for name in QUIET)]

            def shown(query: str) -> bool:
                found = PrometheusClient(url)._ask("query", {"query": query})
                return any(math.isfinite(float(one["value"][1])) for one in found)

            missing = set(there)

            def complete() -> bool:
                missing.difference_update([query for query in missing if shown(query)])
                return not missing

            end = time.monotonic() + 30
            while not complete():
                assert time.monotonic() < end, missing
                time.sleep(0.2)
            for query in set(plain) - set(there):
                PrometheusClient(url)._ask("query", {"query": query})
    finally:
        stop.set()
        asking.join()


def test_the_policy_is_fed_by_what_prometheus_has_seen(busy: Busy, url: str) -> None:
    asked = Queries("sum(rate(foveate_full_quality_seconds_total[5s]))")
    scaler = Autoscaler(
        PrometheusClient(url), ScalingConfig(1, 9, replica_startup_s=2, downscale_delay_s=8), EVERY_S, asked
    )
    seen: list[int] = []

    def step(wanted: int) -> bool:
        decision = scaler.step()
        seen.append(decision.replicas if decision else -1)
        time.sleep(EVERY_S)
        return seen[-1] == wanted

    value = scaler.registry.get_sample_value
    busy.rate = 2.7
    until(lambda: step(4) and abs((value("foveate_autoscaler_demand_replicas") or 0) - 2.7) < 0.3)
    assert max(seen) <= 6
    assert value("foveate_autoscaler_desired_replicas") == 4
    busy.rate = 0.5
    until(lambda: step(1), 40)
    again = Autoscaler(PrometheusClient(url), ScalingConfig(1, 9, downscale_delay_s=300), EVERY_S, asked)
    decision = again.step()
    assert decision is not None
    assert len(again._seen) > 10, "what was before it was started counts too"


def test_the_command_decides_once_and_says_why(busy: Busy, url: str) -> None:
    busy.rate = 2.0
    time.sleep(4)
    rate = "sum(rate(foveate_full_quality_seconds_total[3s]))"
    found = CliRunner().invoke(app, ["autoscaler", url, "--once", "--demand", rate])
    assert found.exit_code == 0, found.output
    assert re.fullmatch(r"\d+ replicas: .+", found.output.strip().replace("\n", " ")), found.output


@pytest.mark.parametrize(
    ("query", "words"), [("sum(", "answered 400"), ("foveate_full_quality_seconds_total", "gives 2 series")]
)
def test_what_cannot_be_asked_is_said_and_the_last_decision_stands(url: str, query: str, words: str) -> None:
    until(lambda: PrometheusClient(url).now("count(foveate_full_quality_seconds_total)") == 2)
    with pytest.raises(PrometheusError, match=words):
        PrometheusClient(url).now(query)
    scaler = Autoscaler(PrometheusClient(url), ScalingConfig(), EVERY_S, Queries(query))
    assert scaler.step() is None
    assert scaler.registry.get_sample_value("foveate_autoscaler_failures_total") == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://127.0.0.1:{busy}"])
def test_what_is_no_prometheus_is_no_demand(busy: Busy, address: str) -> None:
    where = address.format(busy=busy.port)
    with pytest.raises(PrometheusError):
        PrometheusClient(where).now("up")
    assert Autoscaler(PrometheusClient(where), ScalingConfig(), EVERY_S).step() is None
    with pytest.raises(ValueError, match="no address"):
        PrometheusClient("localhost:9090")


def test_decisions_are_published_for_others_to_scrape() -> None:
    registry = CollectorRegistry()
    scaler = Autoscaler(PrometheusClient("http://127.0.0.1:1"), ScalingConfig(), EVERY_S)
    port = publish(scaler.registry, "127.0.0.1", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"foveate_autoscaler_desired_replicas" in answer.read()
    from foveate.core.errors import SetupError

    with pytest.raises(SetupError, match="cannot publish"):
        publish(registry, "127.0.0.1", port)
