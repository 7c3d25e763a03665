"""Glances: their grids, the patches that they choose, and details in their place."""

import pytest
import torch
from torch import Tensor

from foveate.models.runners.frame_glance import SHIFT_TIME, changing_patches, merge_details, resized_grids

CLIPS, FRAMES, PATCHES, WIDTH = 2, 6, 9, 4
AT = (torch.arange(FRAMES) + 0.5) / FRAMES
ALL_COMPUTED = torch.ones(CLIPS, 2, PATCHES, dtype=torch.bool)
SALIENT = torch.tensor([[1, 4], [0, 5]])


@pytest.fixture
def glances() -> Tensor:
    return torch.randn(CLIPS, FRAMES, PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))


def frames_of(features: Tensor, salient: Tensor) -> Tensor:
    return torch.stack([clip[rows] for clip, rows in zip(features, salient, strict=True)])


def test_a_constant_difference_at_each_patch_disappears(glances: Tensor) -> None:
    """Details that differ from glances by the same amount in all frames leave the motion as it is."""
    difference = 10 * torch.randn(CLIPS, 1, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))
    details = frames_of(glances, SALIENT) + difference
    merged = merge_details(glances, details, ALL_COMPUTED, SALIENT, AT)
    torch.testing.assert_close(merged, glances + difference)


def test_details_are_taken_as_they_are(glances: Tensor) -> None:
    details = torch.randn(CLIPS, 2, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))
    merged = merge_details(glances, details, ALL_COMPUTED, SALIENT, AT)
    assert torch.equal(frames_of(merged, SALIENT), details)


def test_patches_without_details_keep_their_glances(glances: Tensor) -> None:
    computed = ALL_COMPUTED.clone()
    computed[0, :, 3] = False
    computed[1, 0, 5] = False  # its other frame has details there
    details = frames_of(glances, SALIENT) + 7
    details[~computed] = torch.nan  # undefined
    merged = merge_details(glances, details, computed, SALIENT, AT)
    torch.testing.assert_close(merged[0, :, 3], glances[0, :, 3])
    torch.testing.assert_close(merged[1, :, 5], glances[1, :, 5] + 7)
    torch.testing.assert_close(merged[0, :, 4], glances[0, :, 4] + 7)


def test_near_details_weigh_more(glances: Tensor) -> None:
    shifts = torch.tensor([2.0, -1.0])
    details = frames_of(glances, SALIENT) + shifts.view(1, 2, 1, 1)
    merged = merge_details(glances, details, ALL_COMPUTED, SALIENT, AT)
    weights = (-(AT[3] - AT[SALIENT[0]]).abs() / SHIFT_TIME).exp()
    expected = (weights * shifts).sum() / weights.sum()
    torch.testing.assert_close(merged[0, 3], glances[0, 3] + expected)
    assert expected < shifts.mean()  # frame 4 is nearer than frame 1


def test_half_precision_stays_half(glances: Tensor) -> None:
    half = glances.bfloat16()
    merged = merge_details(half, frames_of(half, SALIENT) + 1, ALL_COMPUTED, SALIENT, AT)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.float(), glances + 1, atol=0.05, rtol=0.05)


def test_a_larger_grid_keeps_the_corners(glances: Tensor) -> None:
    assert resized_grids(glances, 3) is glances
    larger = resized_grids(glances, 6)
    assert larger.shape == (CLIPS, FRAMES, 36, WIDTH)
    torch.testing.assert_close(larger[:, :, 0], glances[:, :, 0])  # a corner


def test_the_patches_that_change_most_are_chosen(glances: Tensor) -> None:
    still = glances[:, :1].expand(-1, FRAMES, -1, -1).clone()
    still[0, 4, 7] += 5
    still[1, 0, 2] += 5
    chosen = changing_patches(still, SALIENT, 3, 1 / 9)
    assert chosen.shape == (CLIPS, 2, 1)
    assert chosen[0, :, 0].tolist()[1] == 7 and chosen[1, :, 0].tolist()[0] == 2
