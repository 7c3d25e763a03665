"""The training of clip heads: the drawn plans and videos."""

import random
from collections import Counter

import pytest
import torch

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install --group dev")

from foveate.models.heads.clip import ClipSpec
from tests.support.clip_heads import clip_checkpoint
from training import scenes
from training.clips import draw_batch, random_plan
from training.emoji import FONT

pytestmark = pytest.mark.usefixtures("one_thread")
needs_font = pytest.mark.skipif(not FONT.exists(), reason=f"{FONT} is not installed: make train-env")
SPEC = ClipSpec(13, frames=4, image_size=64)


def test_a_fifth_of_the_steps_glance() -> None:
    checkpoint = clip_checkpoint()
    assert checkpoint.model is not None and checkpoint.clip is not None
    rng = random.Random(0)
    drawn = [random_plan(rng, checkpoint.model, checkpoint.clip) for _ in range(1000)]
    glances = [plan.glance for plan in drawn if plan.glance is not None]
    assert 160 <= len(glances) <= 240
    assert len(Counter(glance.frames for glance in glances)) == 5
    assert all(glance.frames < plan.frames for plan in drawn if (glance := plan.glance))
    assert 1.0 in {glance.share for glance in glances}


@needs_font
def test_the_first_video_moves_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "BANK_SIZE", 2)
    later, moved = draw_batch(1, 2, SPEC), draw_batch(0, 2, SPEC, first=2)
    assert torch.equal(later.clips, moved.clips) and torch.equal(later.motions, moved.motions)
    assert not torch.equal(draw_batch(0, 2, SPEC).clips, moved.clips)
