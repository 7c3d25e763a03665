"""The clip head: causal attention over frames, times, regions, and cost."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.models.heads.clip import WAVES, ClipHead, waves
from tests.support.clip_heads import SMALL, SPEC

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def clip_head() -> ClipHead:
    head, generator = ClipHead(SMALL, SPEC).eval(), torch.Generator().manual_seed(5)
    for name, parameter in head.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.3 * noise)
    return head


def inputs(batch: int = 2, frames: int = 6) -> tuple[Tensor, Tensor]:
    """Random regions and evenly spaced times."""
    generator = torch.Generator().manual_seed(2)
    regions = torch.randn(batch, frames, SPEC.reads, SPEC.grid, SPEC.grid, generator=generator)
    return regions, ((torch.arange(frames) + 0.5) / frames).expand(batch, -1)


def test_wave_encodings_are_distinct() -> None:
    times = (torch.arange(64) + 0.5) / 64
    encoded = waves(times[None])[0]
    assert encoded.shape == (64, 2 * WAVES)
    assert torch.cdist(encoded, encoded).fill_diagonal_(9).min() > 0.1


def test_logits_depend_only_on_the_frames_so_far() -> None:
    head, (regions, at) = clip_head(), inputs()
    logits, _ = head(regions, at)
    assert logits.shape == (2, 6, SPEC.classes)
    for frames in (1, 3, 5):
        shorter, attention = head(regions[:, :frames], at[:, :frames])
        assert torch.allclose(shorter, logits[:, :frames], atol=1e-5)
        assert torch.allclose(attention.sum(1), torch.ones(2), atol=1e-5)
    changed = regions.clone()
    changed[:, 3] += 1
    after = head(changed, at)[0]
    assert torch.allclose(after[:, :3], logits[:, :3], atol=1e-5)
    assert ((after - logits)[:, 3:].abs().amax(2) > 1e-3).all()


def test_a_still_background_does_not_matter_and_times_do() -> None:
    head, (regions, at) = clip_head(), inputs()
    logits, _ = head(regions, at)
    assert torch.allclose(head(regions + 3, at)[0], logits, atol=1e-4)
    assert (head(regions, at.flip(1))[0] - logits).abs().max() > 1e-2


def test_each_block_has_its_own_reader_and_patches_are_pooled_to_regions() -> None:
    head = clip_head()
    grid = torch.randn(2, 16, SMALL.width, generator=torch.Generator().manual_seed(1))
    features = [head.read(grid, block) for block in range(1, SMALL.depth + 1)]
    assert all(each.shape == (2, 16, SPEC.reads) for each in features)
    assert all((each - features[0]).abs().max() > 0.1 for each in features[1:])
    assert torch.equal(head.read(grid, 0), features[0]), "before any block, the first reader reads"
    assert head.pooled(features[0]).shape == (2, SPEC.reads, SPEC.grid, SPEC.grid)
    own_size = head.read(grid[:, :9], 1)
    assert torch.equal(head.pooled(own_size).flatten(2).transpose(1, 2), own_size)


def test_the_cost_is_that_of_the_matrix_products() -> None:
    head, (regions, at) = clip_head(), inputs(batch=1)
    with FlopCounterMode(display=False) as counter:
        head(regions, at)
    assert head.macs(6) == counter.get_total_flops() / 2
