"""Files that are made to cost memory or time get the right status, within a limit on both.

Each is decoded in a process of its own, whose resident memory is measured: decoders allocate outside Python.
"""

import sys

import pytest

from tests.support.decode_cost import decode_costs
from tests.support.hostile_clips import CLIPS
from tests.support.hostile_images import IMAGES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
CPU_S = 8.0
"""Processor time that any file may take, generous since machines differ. Without limits some took minutes."""


@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image_is_cheap(name: str) -> None:
    make, status, mebibytes = IMAGES[name]
    (cost,) = decode_costs([make()])
    assert cost.status == status, cost.detail
    assert cost.mebibytes < mebibytes
    assert cost.cpu_s < CPU_S


@pytest.mark.parametrize("name", CLIPS)
def test_a_hostile_clip_is_cheap(name: str) -> None:
    make, statuses, mebibytes = CLIPS[name]
    (cost,) = decode_costs([make()], clips=True)
    assert cost.status in statuses, cost.detail
    assert cost.mebibytes < mebibytes
    assert cost.cpu_s < CPU_S
