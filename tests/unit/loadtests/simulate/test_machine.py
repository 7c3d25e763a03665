"""Simulated batch times: the profile, interpolation, disturbances."""

import numpy as np
import pytest

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from loadtests.simulate.__main__ import ZOO
from loadtests.simulate.machine import Disturbance, Machine, batch_table, ladder, seconds_by_size

FULL = Plan("tiny", 32)
RUNGS = (Rung(FULL, 1.0, 10, 1.0, {1: 1.0, 2: 2.0}),)


def test_seconds_are_interpolated_between_the_measured_sizes() -> None:
    table = seconds_by_size({2: 4.0, 4: 5.0}, 6)
    assert table == pytest.approx([0.0, 2.0, 4.0, 4.5, 5.0, 5.5, 6.0])
    assert seconds_by_size({1: 3.0}, 2) == pytest.approx([0.0, 3.0, 6.0])


def test_a_machine_is_slow_noisy_and_stalls_as_configured() -> None:
    table = batch_table(RUNGS, 2)
    assert Machine(table, Disturbance(3.0, 0.0, 0.0), 0).run(FULL, 2) == 6.0
    assert Machine(table, Disturbance(1.0, 0.0, 1.0, 5.0), 0).run(FULL, 1) == 5.0
    assert Machine(table, Disturbance(gap_s=0.5), 0).gap_s == 0.5
    noisy = Machine(table, Disturbance(noise=0.2, stall_rate=0.0), 0)
    took = np.array([noisy.run(FULL, 1) for _ in range(5000)])
    assert took.mean() == pytest.approx(1, rel=0.02) and np.log(took).std() == pytest.approx(0.2, rel=0.05)


def test_the_ladder_of_a_profile_is_what_an_engine_chooses_from() -> None:
    profile = Profile.read((ZOO / "vit-t.profile.json").read_text(), "vit-t")
    rungs = ladder(profile)
    assert str(rungs[-1].plan) == str(Plan(profile.model, 224))
    qualities = [rung.quality or 0.0 for rung in rungs]
    assert qualities == sorted(qualities) and len(rungs) > 1


def test_a_profile_without_latencies_is_refused() -> None:
    text = (ZOO / "vit-t.profile.json").read_text()
    profile = Profile.read(text, "vit-t")
    for rung in profile.ladder:
        object.__setattr__(rung, "latency_s", {})
    with pytest.raises(SetupError, match="has no latencies"):
        ladder(profile)
