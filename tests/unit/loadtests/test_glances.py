"""The bench of glances: its plans, random frames, and the page."""

import numpy as np
import pytest
import torch

from foveate.core.plan import Plan
from foveate.models.runners.video_classifier import ClipRunner
from loadtests.glances import GLANCE_ALONE, PLANS, RANDOM, RandomFrames, classes_at_random, page
from tests.support.clip_heads import clip_checkpoint


@pytest.fixture(scope="module")
def runner() -> ClipRunner:
    return ClipRunner(clip_checkpoint())


def test_random_frames_depend_on_the_seed_and_not_on_the_attention(runner: ClipRunner) -> None:
    executor = RandomFrames(runner.model, lambda *_: torch.empty(0), 8)

    def drawn(seed: int, attention: torch.Tensor) -> torch.Tensor:
        executor.generator = torch.Generator().manual_seed(seed)
        return executor.salient_frames(attention, 2)

    attention = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    first = drawn(1, attention)
    assert first.shape == (20, 2) and bool((first[:, 0] < first[:, 1]).all())
    assert torch.equal(first, drawn(1, attention.flip(1))) and not torch.equal(first, drawn(2, attention))
    assert set(first.flatten().tolist()) == set(range(8))


def test_all_frames_at_random_are_full(runner: ClipRunner) -> None:
    clips = list(np.random.default_rng(0).integers(0, 256, (6, 8, 64, 64, 3), np.uint8))
    plan = Plan.parse("glance:8", runner.full)
    drawn = classes_at_random(runner, runner.stack(clips, plan), plan, torch.Generator().manual_seed(0))
    full = runner.run(runner.stack(clips, runner.full), runner.full)
    assert drawn == [int(result.scores.argmax()) for result in full if not isinstance(result, Exception)]


def test_the_page_has_each_plan_and_its_random_counterpart() -> None:
    figures = {"clips": 312.0, "glance8_points_lost": 2.6}
    for number, plan in enumerate(PLANS):
        figures |= {f"{plan} top1": 0.8, f"{plan} points_lost": 6.5, f"{plan} standard_error": 1.0}
        if not plan.startswith(RANDOM):
            figures[f"{plan} gflops"] = float(number)
    text = page(figures)
    assert "| points that glance:8 loses to full | 2.6 | at most 2.5 | **missed** |" in text
    assert "| the glance alone |" in text and GLANCE_ALONE not in text
    assert "| frames:8/depth:6 | " in text and "| 80.0% | 6.5 ± 1.0 |" in text
    assert text.count("| glance:4:0.5 | ") == 2
