"""The figures of the default classifier of photographs, from its profile."""

from foveate.core.profile import Measurement, Profile
from loadtests.report import Figures

POINT = 0.01
"""Quality that a plan may lose for `photos_speedup_at_1pt_agreement`."""


def figures(profile: Profile) -> Figures:
    """Agreement of the cheapest rung with full, and how many times as fast as full rungs are.

    The speed is that of the largest batch that was timed. Raises ValueError if the ladder was not timed.
    """
    rungs = [m for m in profile.ladder if m.seconds]
    full = profile.full.seconds
    if not rungs or not full:
        raise ValueError(f"the profile of {profile.model} has no latencies: foveate profile measures them")
    cheapest = min(rungs, key=_seconds)
    kept = [m for m in rungs if m.quality >= 1 - POINT]
    return {
        "photos_top1_agreement_cheapest": cheapest.quality,
        "photos_ladder_span": round(full / _seconds(cheapest), 3),
        "photos_speedup_at_1pt_agreement": round(full / min(map(_seconds, kept)), 3),
    }


def _seconds(m: Measurement) -> float:
    return m.seconds or float("inf")
