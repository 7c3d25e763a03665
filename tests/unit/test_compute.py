"""Turns on the device, and what the models that take them know of one another."""

import math

import pytest

from foveate.engine.compute import FULL, MEMORY_S, Compute

pytestmark = pytest.mark.anyio


async def test_what_others_allow_is_known_for_a_while() -> None:
    now = [0.0]
    compute = Compute(lambda: now[0])
    for name, allowed_s in (("pictures", 0.3), ("clips", 1.0), ("idle", math.inf)):
        async with compute.turn(name, 0.01, allowed_s):
            pass
    assert compute.patience("clips") == 0.3
    assert compute.patience("pictures") == 1.0
    assert compute.patience("new") == 0.3
    now[0] += MEMORY_S + 0.1
    assert compute.patience("clips") == math.inf
    compute.close()


def test_models_that_want_too_much_together_all_get_as_much_less() -> None:
    now = [0.0]
    compute = Compute(lambda: now[0])
    assert compute.fair("clips", 5.0) == math.inf  # alone it may take all there is
    now[0] += 0.1
    assert compute.fair("pictures", 1.0) == pytest.approx(FULL / 6)
    assert compute.fair("clips", 1.0) == pytest.approx(FULL / 2)
    compute.fair("clips", 0.2)
    assert compute.fair("pictures", 0.3) == math.inf
    now[0] += MEMORY_S + 0.1
    assert compute.fair("clips", 5.0) == math.inf
    compute.close()
