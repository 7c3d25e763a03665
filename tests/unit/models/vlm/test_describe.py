"""The card of a vision-language model."""

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.models.layers.threshold_merging import MergeThresholds
from foveate.models.vlm.describe import merge_blocks, merge_thresholds
from foveate.models.vlm.runner import ChatRunner
from tests.support import chat_models

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_the_card_of_a_model_without_a_profile(tmp_path: Path) -> None:
    checkpoint = chat_models.load(tmp_path)
    card = ChatRunner(checkpoint).card
    assert (card.name, card.task, card.licence) == (chat_models.NAME, "chat", "MIT")
    (rung,) = card.ladder
    assert (rung.plan, rung.quality, rung.tokens, rung.worst_quality) == (card.full, 1.0, 16, None)
    assert rung.gflops > 0 and card.input is not None and not card.labels
    assert ChatRunner(checkpoint).card == card
    # Answers depend on how pixels are prepared.
    other = replace(checkpoint, pixels=replace(checkpoint.pixels, mean=(0.4, 0.4, 0.4)))
    assert ChatRunner(other).card.weights != card.weights


def test_thresholds_pass_through_a_profile() -> None:
    thresholds = MergeThresholds(4, (0.5, 0.9), (10.0, 4.5))
    assert merge_thresholds({4: merge_blocks(thresholds)}) == {4: thresholds}
