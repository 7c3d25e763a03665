"""JSON bodies of answers to clips, and masks of their frames."""

from collections.abc import Iterator

import numpy as np
import pytest

from foveate.core.outcome import Outcome, Result, Timings
from foveate.gateway.media.masks import RenderedMask, encode_mask
from foveate.gateway.media.video import Clip
from foveate.gateway.schemas.response import ServedRequest
from foveate.gateway.schemas.video import (
    ClipClassification,
    ClipSegmentation,
    TimedMask,
    clip_classification,
    clip_segmentation,
)
from tests.support.fake_runner import FULL, FakeRunner

CLIP = Clip(np.zeros((1, 4, 8, 8, 3), np.uint8), (0.1, 0.3, 0.5, 0.70049), 0.8, (64, 48), 4)


def served(result: Result) -> ServedRequest:
    outcomes = [Outcome(result, FULL, Timings(0.0, 0.0), 1)]
    return ServedRequest("id-1", FakeRunner().card, outcomes, False, None, {"total": 0.25})


def test_a_classification_has_an_answer_after_each_used_frame() -> None:
    over_time = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    result = Result(over_time[1], 5, 12, 0.5, frames=(1, 3), over_time=over_time)
    body = bytes(clip_classification(served(result), CLIP, 1, False).body)
    parsed = ClipClassification.model_validate_json(body)
    assert [(frame.at_s, frame.predictions[0].label) for frame in parsed.over_time] == [
        (0.3, "yes"),
        (0.7, "no"),
    ]
    assert parsed.predictions[0].label == "no"
    assert parsed.clip.model_dump() == {
        "width": 64, "height": 48, "duration_s": 0.8, "sampled_s": [0.3, 0.7],
    }  # fmt: skip


@pytest.mark.parametrize("explain", [False, True])
def test_a_clip_has_no_explanation(explain: bool) -> None:
    result = Result(np.array([0.9, 0.1], np.float32), 5, 12, 0.5, frames=(0,))
    body = bytes(clip_classification(served(result), CLIP, 1, explain).body)
    assert (b'"explain":null' in body) is explain


def test_a_segmentation_has_a_mask_for_each_frame() -> None:
    def masks() -> Iterator[TimedMask]:
        for number, overlay in enumerate((None, b"jpeg")):
            mask = encode_mask(np.full((48, 64), number, np.uint8))
            yield TimedMask(0.1 + number, RenderedMask((64, 48), mask, overlay, []))

    result = Result(np.array([0.9, 0.1], np.float32), 5, 12, 0.5)
    response = clip_segmentation(served(result), CLIP, list(masks()))
    parsed = ClipSegmentation.model_validate_json(bytes(response.body))
    assert [frame.at_s for frame in parsed.frames] == parsed.clip.sampled_s == [0.1, 1.1]
    assert [frame.overlay for frame in parsed.frames] == [None, "data:image/jpeg;base64,anBlZw=="]
    assert parsed.windows == 1
