"""Plans of images: which are accepted, and one sentence for each refusal."""

import pytest

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.profiling.content_profile import learn
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.image_plans import parse_certainty, parse_full_cost
from tests.support import measuring, routed
from tests.support.dense_heads import dense_checkpoint
from tests.support.routed import ROUTER

pytestmark = pytest.mark.usefixtures("one_thread")


RUNGS = (ROUTER, "evit:0.6", "full")


def content_runner(max_batch: int = 16) -> TorchRunner:
    runner = routed.runner(max_batch)
    offered = [(measuring.plan(ROUTER, 0.9, 0.1), measuring.plan("full", 1.0, 1.0))]
    runner.content = learn(runner, routed.images(60), range(60), offered, lambda *_: None)
    assert runner.content is not None
    return runner


@pytest.mark.parametrize("text", ["content:0.9", "content:.5", "content:1", "content:0.000001"])
def test_probabilities_are_accepted(text: str) -> None:
    runner = content_runner()
    runner.check(Plan.parse(text, runner.full))
    runner.check(runner.card.plan(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("content:0", "probability above 0 and at most 1, as in 0.9; got '0'"),
        ("content:1.01", "probability above 0 and at most 1"),
        ("content:x", "probability above 0 and at most 1, as in 0.9; got 'x'"),
        ("content:nan", "probability above 0 and at most 1"),
        ("content:inf", "probability above 0 and at most 1"),
        ("content:-1", "probability above 0 and at most 1"),
        ("content:0.9/evit:0.5", "no other part goes with it"),
        ("evit:0.5/content:0.9", "no other part goes with it"),
        ("content:0.9/depth:2", "no other part goes with it"),
        ("content:0.9/heads:1", "no other part goes with it"),
        ("content:0.9/stitch:2", "no other part goes with it"),
        ("tiny@32/content:0.9", "no other part goes with it"),
        ("router@64/content:0.9", "no other part goes with it"),
        ("vit-xs@112/content:0.9", "vit-xs is not a variant of tiny"),
        ("content:0.9/bf16", "is loaded in fp32"),
    ],
)
def test_wrong_content_plans_are_refused(text: str, sentence: str) -> None:
    runner = content_runner()
    with pytest.raises(BadPlan, match=sentence) as refused:
        runner.check(Plan.parse(text, runner.full))
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("text", ["content:0.9", "content:1", "content:0", "content:x"])
def test_content_without_content_rungs_is_refused(text: str) -> None:
    runner = routed.runner()
    with pytest.raises(BadPlan, match="tiny has no content rungs; foveate profile finds them"):
        runner.check(Plan.parse(text, runner.full))


@pytest.mark.parametrize("text", ["content", "content:0.9/content:0.8"])
def test_text_of_a_content_plan(text: str) -> None:
    runner = content_runner()
    with pytest.raises(BadPlan):
        runner.check(Plan.parse(text, runner.full))
    assert str(Plan.parse("content:.90", runner.full)) == "tiny@64/content:0.9/fp32"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stitch:3", "tiny has no stitch 3; it has 2"),
        ("stitch:2/evit:0.5", "takes tokens unreduced"),
        ("stitch:2/depth:3", "takes tokens unreduced"),
        ("router@64/stitch:1", "router has no stitch 1; it has none"),
    ],
)
def test_wrong_stitches_are_refused(text: str, sentence: str) -> None:
    runner = routed.runner()
    with pytest.raises(BadPlan, match=sentence):
        runner.check(Plan.parse(text, runner.full))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stitch:2", "stitch and content are for classification, and tiny-seg segments images"),
        ("content:0.9", "stitch and content are for classification, and tiny-seg segments images"),
        ("frames:2", "frames, glance and reuse are for video clips, and tiny-seg takes images"),
        ("exit:0.9", "takes exits as in exit:eco:0.1, not exit:0.9"),
        ("exit:eco:2", "takes exits as in exit:eco:0.1, not exit:eco:2"),
        ("exit:eco:0.1", "tiny-seg has no gate, so exit:eco:0.1 cannot be served"),
    ],
)
def test_wrong_segmentation_plans_are_refused(text: str, sentence: str) -> None:
    runner = TorchRunner(dense_checkpoint())
    with pytest.raises(BadPlan, match=sentence):
        runner.check(Plan.parse(text, runner.full))


@pytest.mark.parametrize("text", ["frames:2", "glance:2", "reuse:0.5"])
def test_plans_of_clips_are_refused(text: str) -> None:
    runner = routed.runner()
    with pytest.raises(BadPlan, match="for video clips, and tiny takes images"):
        runner.check(Plan.parse(text, runner.full))


def test_parsed_values() -> None:
    assert parse_certainty(Plan("tiny", 64, content="0.9")) == 0.9
    assert parse_full_cost(Plan("tiny", 64)) is None
    assert parse_full_cost(Plan("tiny", 64, exit="eco:0.1")) == 0.1
