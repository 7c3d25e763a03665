"""The size of responses on the way."""

from dataclasses import replace

import numpy as np

from foveate.cluster.envelope import ResponseEnvelope
from foveate.core.errors import RunFailed
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from tests.support.fake_runner import FULL

RESULT = Result(np.zeros(1000, np.float32), 1, 1, 0.0)
MAPS = ClassMaps((0, 1), np.zeros((2, 10, 10), np.float16))


def nbytes(result: Result) -> int:
    return ResponseEnvelope(1, Outcome(result, FULL, Timings(0, 0), 1)).nbytes


def test_class_maps_of_images_and_video_clips_count() -> None:
    assert nbytes(replace(RESULT, maps=MAPS)) == 400
    assert nbytes(replace(RESULT, maps=MAPS, frame_maps=(MAPS, MAPS))) == 1200


def test_scores_and_errors_are_too_small_to_count() -> None:
    assert nbytes(RESULT) == 0
    assert ResponseEnvelope(1, RunFailed("no")).nbytes == 0
