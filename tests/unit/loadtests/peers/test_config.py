"""The limits of a server follow from its rate and its deadline."""

import pytest

from loadtests.peers.config import DEADLINE_SHARE, PeerConfig


@pytest.mark.parametrize("rate", [5.0, 26.0, 400.0])
@pytest.mark.parametrize("slo_ms", [100.0, 250.0, 500.0, 60_000.0])
def test_admitted_requests_end_within_the_deadline(rate: float, slo_ms: float) -> None:
    config = PeerConfig("w.safetensors", "fp32", 1, slo_ms, rate)
    assert 1 <= config.batch <= config.capacity or config.capacity == 1
    if config.capacity > 1:
        assert config.capacity / rate <= DEADLINE_SHARE * slo_ms / 1e3
        assert config.max_wait_ms / 1e3 + config.batch / rate <= DEADLINE_SHARE * slo_ms / 1e3 + 1e-9


def test_the_environment_carries_the_configuration() -> None:
    config = PeerConfig("w.safetensors", "bf16", 81, 250.0, 26.0, "token")
    assert PeerConfig.read(config.environment()) == config
