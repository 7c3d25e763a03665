"""The bench of caches: its figures, its percentile, and the Redis that it starts."""

import shutil
import socket

import pytest

from loadtests.scale import caches
from loadtests.scale.caches import FeatureTimes, HitTimes, OutageResult

FEATURES = (FeatureTimes("click", 30.0, 10.0), FeatureTimes("segment", 20.0, 5.0))
WITH_REDIS = (FeatureTimes("click", 30.0, 15.0), FeatureTimes("segment", 20.0, 8.0))


def test_the_figures_are_the_smallest_gains_and_the_rounded_medians() -> None:
    outage = OutageResult(360, 2, (100, 0, 60), (35.04, 40.0, 36.0))
    figures = caches.figures(
        HitTimes(25.0, 0.2004, 0.7), HitTimes(25.0, 0.42, 0.9), FEATURES, WITH_REDIS, outage
    )
    assert figures["feature_hit_speedup"] == 3 and figures["feature_hit_speedup_redis"] == 2
    assert figures["response_hit_p50_ms"] == 0.2 and figures["response_hit_p50_ms_redis"] == 0.42
    assert figures["features"][1] == ["segment", 20.0, 5.0, 8.0]
    assert (figures["redis_down_requests"], figures["redis_down_errors"]) == (360, 2)
    assert figures["redis_p99_ms"] == [35.0, 40.0, 36.0]


def test_the_99th_percentile_is_one_of_the_values() -> None:
    assert caches.p99([float(value) for value in range(200, 0, -1)]) == 198
    assert caches.p99([5.0]) == 5


def test_a_server_gets_the_cache_by_its_environment() -> None:
    assert caches.cache_environment("memory") == {
        "FOVEATE_CACHE": "memory",
        "FOVEATE_CACHE_BYTES": "67108864",
    }


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_the_redis_of_the_bench_starts_again_on_the_same_port() -> None:
    def listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with caches.redis() as server:
        assert listens(server.port)
        server.stop()
        assert not listens(server.port)
        server.start()
        assert listens(server.port)
    assert not listens(server.port)
