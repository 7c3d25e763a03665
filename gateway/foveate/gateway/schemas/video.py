"""Answers to clips on the wire: what was seen when, and what it showed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, Field

from foveate.gateway.media.masks import RenderedMask
from foveate.gateway.media.video import Clip
from foveate.gateway.schemas.image import (
    Compute,
    Prediction,
    Segment,
    data_url,
    prediction_fields,
    segment_fields,
)
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest


class ClipFields(BaseModel):
    """The clip, and which of its frames were looked at."""

    width: int
    height: int
    duration_s: float
    sampled_s: list[float] = Field(description="when the frames are shown that were looked at, in seconds")


class Moment(BaseModel):
    """What was said after one of the frames."""

    at_s: float
    predictions: list[Prediction]


class ClipClassification(BaseModel):
    """The answer of POST /classify to a clip."""

    id: str
    model: str
    predictions: list[Prediction]
    over_time: list[Moment] = Field(description="what was said after each frame that was looked at, in order")
    clip: ClipFields
    compute: Compute
    timings_ms: dict[str, float]


class FrameMask(BaseModel):
    """One frame, its pixels named."""

    at_s: float
    segments: list[Segment]
    mask: str = Field(description="indexed PNG of the frame's size, as a data URL")
    overlay: str | None = Field(None, description="JPEG, as a data URL; only with ?overlay=true")


class ClipSegmentation(BaseModel):
    """The answer of POST /segment to a clip."""

    id: str
    model: str
    frames: list[FrameMask]
    clip: ClipFields
    windows: int
    compute: Compute
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class TimedMask:
    """A frame's mask, and when the frame is shown."""

    at_s: float
    drawn: RenderedMask


def named_clip(served: ServedRequest, clip: Clip, top_k: int, explain: bool) -> CacheableResponse:
    """The response to a clip that was named. Nobody can tell yet which patches of it were looked at."""
    (outcome,) = served.outcomes
    result, said = outcome.result, outcome.result.over_time
    fields: dict[str, object] = {
        "predictions": prediction_fields(served.card, result, top_k),
        "over_time": [
            {
                "at_s": round(clip.at_s[frame], 3),
                "predictions": prediction_fields(served.card, replace(result, scores=scores), top_k),
            }
            for frame, scores in zip(result.frames, () if said is None else said, strict=False)
        ],
        "clip": clip_fields(clip, [clip.at_s[frame] for frame in result.frames]),
        "compute": served.compute(),
    }
    if explain:
        fields["explain"] = None
    return served.answered(fields)


def outlined_clip(served: ServedRequest, clip: Clip, reel: Sequence[TimedMask]) -> CacheableResponse:
    """The response to a clip whose pixels were named."""
    frames = []
    for one in reel:
        fields: dict[str, object] = {
            "at_s": round(one.at_s, 3),
            "segments": segment_fields(served.card, one.drawn),
            "mask": data_url("image/png", one.drawn.mask),
        }
        if one.drawn.overlay is not None:
            fields["overlay"] = data_url("image/jpeg", one.drawn.overlay)
        frames.append(fields)
    return served.answered(
        {
            "frames": frames,
            "clip": clip_fields(clip, [one.at_s for one in reel]),
            "windows": len(served.outcomes),
            "compute": served.compute(),
        }
    )


def clip_fields(clip: Clip, at_s: Sequence[float]) -> dict[str, object]:
    """A clip on the wire."""
    return {
        "width": clip.size[0],
        "height": clip.size[1],
        "duration_s": round(clip.duration_s, 3),
        "sampled_s": [round(at, 3) for at in at_s],
    }
