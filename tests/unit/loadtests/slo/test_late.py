"""Forwards for expired or cancelled requests, with the real engine and a real model."""

from loadtests.slo import late


def test_no_forward_runs_for_an_expired_or_cancelled_request() -> None:
    figures = late.count()
    assert figures["late_forwards"] == 0
    assert 0 < figures["late_answered"] <= figures["late_ran"] < figures["late_offered"]
