"""Plans of clips: their cost, and one sentence for each refusal."""

import numpy as np
import pytest

from foveate.core.errors import BadPlan
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.layers.config import block_macs, embedding_macs
from foveate.models.runners.video_classifier import ClipRunner
from tests.support.clip_heads import SMALL, SPEC, clip_checkpoint


@pytest.fixture(scope="module")
def runner() -> ClipRunner:
    return ClipRunner(clip_checkpoint())


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8, 64, 64, 3), np.uint8) for _ in range(5)]


def run(runner: ClipRunner, clips: list[np.ndarray], text: str) -> list[Result]:
    plan = Plan.parse(text, runner.full)
    results = runner.run(runner.stack(clips, plan), plan)
    assert all(isinstance(result, Result) for result in results)
    return [result for result in results if isinstance(result, Result)]


def test_cost_is_the_sum_of_its_parts(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    g, head = SMALL, runner.model.clip
    assert head is not None
    frame = embedding_macs(g, 64) + block_macs(g, 17, (17,) * 4) + 16 * g.width * SPEC.reads
    part = embedding_macs(g, 64) + block_macs(g, 6, (6,) * 4) + 16 * g.width * SPEC.reads
    glance = embedding_macs(g, 32) + block_macs(g, 5, (5,) * 2) + 4 * g.width * SPEC.reads
    for text, macs in {
        "full": 8 * frame + head.macs(8),
        "frames:3": 3 * frame + head.macs(3),
        "reuse:0.3": frame + 7 * part + head.macs(8),
        "glance:2:0.3": 8 * glance + 2 * part + 2 * head.macs(8),
        "glance:2": 8 * glance + 2 * frame + 2 * head.macs(8),
        "exit:1": 8 * frame + head.macs(2) + head.macs(4) + head.macs(8),
        "exit:0.0001": 2 * frame + head.macs(2) + head.macs(2),
    }.items():
        assert run(runner, clips[:1], text)[0].gflops == pytest.approx(macs / 1e9)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("frames:9", "8 frames"),
        ("glance:9", "1 to 8"),
        ("glance:0", "1 to 8"),
        ("glance:2:0", "share"),
        ("glance:2:0.5/reuse:0.5", "one of them"),
        ("glance:2:0.5/evit:0.5", "no reducer"),
        ("reuse:0.5/evit:0.5", "no reducer"),
        ("reuse:2", "share"),
        ("reuse:x", "share"),
        ("ats:8", "every frame"),
        ("content:0.9", "images"),
        ("tiny-clip@80", "64 pixels"),
        ("tiny-clip@64/fp16", "fp32"),
        ("other@64", "not a variant"),
        ("exit:nothing:1", "exit rule"),
    ],
)
def test_plans_that_cannot_run_are_refused(runner: ClipRunner, text: str, word: str) -> None:
    with pytest.raises(BadPlan, match=word):
        runner.check(Plan.parse(text, runner.full))
