"""The runner protocols: what the engine and the cluster recognise by `isinstance`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.outcome import Explanation
from foveate.core.plan import Plan
from foveate.engine.engine import Engine
from foveate.engine.runner import HasExplanations, HasSubmodels, HasThreads, Runner
from tests.support.fake_runner import FULL, FakeRunner


class Threaded(FakeRunner):
    """Is ten times as fast on two threads as on one."""

    @property
    def times(self) -> Mapping[int, Mapping[Plan, Mapping[int, float]]]:
        return {threads: {FULL: {1: seconds}} for threads, seconds in ((1, 0.5), (2, 0.05))}

    def use(self, threads: int) -> None:
        self.threads = threads


class WithSubmodel(FakeRunner):
    @property
    def submodels(self) -> Sequence[Runner]:
        return (FakeRunner("light"),)


class Explaining(FakeRunner):
    def explain(self, media: Sequence[Any], plan: Plan) -> Sequence[Explanation]:
        return [Explanation((1, 1), (), 12)] * len(media)


def test_optional_protocols_are_recognised_by_their_members() -> None:
    optional = (HasThreads, HasSubmodels, HasExplanations)
    assert [isinstance(FakeRunner(), protocol) for protocol in optional] == [False] * 3
    assert [isinstance(Threaded(), protocol) for protocol in optional] == [True, False, False]
    assert [isinstance(WithSubmodel(), protocol) for protocol in optional] == [False, True, False]
    assert [isinstance(Explaining(), protocol) for protocol in optional] == [False, False, True]


def test_measured_times_by_threads_reach_the_latency_model() -> None:
    engine = Engine(Threaded(), Metrics())
    assert engine.latency.threads(FULL) == 2
    assert engine.latency.predict(FULL, 1) == pytest.approx(0.05)


def test_submodels_are_served_under_their_own_names() -> None:
    cluster = LocalCluster([WithSubmodel], Metrics())
    assert list(cluster.cards()) == ["fake", "light"]
