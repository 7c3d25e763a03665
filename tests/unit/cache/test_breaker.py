"""The circuit breaker: opens after failures, probes, and waits longer after each failed probe."""

from foveate.cache.breaker import (
    FAILURE_THRESHOLD,
    MAX_PAUSE_S,
    MIN_PAUSE_S,
    PROBE_TIMEOUT_S,
    CircuitBreaker,
)


def test_it_opens_allows_one_probe_and_doubles_its_pause() -> None:
    now = [0.0]
    breaker = CircuitBreaker(lambda: now[0])
    for _ in range(FAILURE_THRESHOLD - 1):
        breaker.record_failure()
    assert breaker.allow()
    breaker.record_success()
    for _ in range(FAILURE_THRESHOLD):
        assert breaker.allow()
        breaker.record_failure()
    assert not breaker.allow()
    pause_s = MIN_PAUSE_S
    for _ in range(8):
        now[0] += pause_s - 0.01
        assert not breaker.allow()
        now[0] += 0.02
        assert (breaker.allow(), breaker.allow()) == (True, False), "only one call probes"
        breaker.record_failure()
        pause_s = min(MAX_PAUSE_S, 2 * pause_s)
    now[0] += pause_s
    assert breaker.allow()
    breaker.record_success()
    assert (breaker.state, breaker.allow(), breaker.allow()) == ("closed", True, True)


def test_a_probe_without_a_result_does_not_keep_it_open_for_ever() -> None:
    now = [0.0]
    breaker = CircuitBreaker(lambda: now[0])
    for _ in range(FAILURE_THRESHOLD):
        breaker.record_failure()
    now[0] += MIN_PAUSE_S
    assert (breaker.allow(), breaker.allow()) == (True, False)
    now[0] += PROBE_TIMEOUT_S
    assert breaker.allow()
    breaker.record_cancellation()
    assert breaker.allow()
