"""JSON bodies of answers to video clips."""

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
    """The clip, and the frames that the model used."""

    width: int = Field(description="width of an upright frame in square pixels")
    height: int
    duration_s: float
    sampled_s: list[float] = Field(description="times of the frames that the model used, in seconds")


class FramePredictions(BaseModel):
    """The answer after one of the frames."""

    at_s: float = Field(description="time of the frame in seconds")
    predictions: list[Prediction]


class ClipClassification(BaseModel):
    """The answer of POST /classify to a clip."""

    id: str
    model: str
    predictions: list[Prediction]
    over_time: list[FramePredictions] = Field(
        description="the answer after each frame that was used, in order"
    )
    clip: ClipFields
    compute: Compute
    timings_ms: dict[str, float]


class FrameMask(BaseModel):
    """The mask of one frame."""

    at_s: float = Field(description="time of the frame in seconds")
    segments: list[Segment] = Field(description="the largest first, without the background")
    mask: str = Field(description="indexed PNG of the frame's size, as a data URL")
    overlay: str | None = Field(None, description="JPEG, as a data URL; only with ?overlay=true")


class ClipSegmentation(BaseModel):
    """The answer of POST /segment to a clip."""

    id: str
    model: str
    frames: list[FrameMask]
    clip: ClipFields
    windows: int = Field(description="tiles of a frame that were run on their own")
    compute: Compute
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class TimedMask:
    """A frame's mask, and the time of the frame in seconds."""

    at_s: float
    rendered: RenderedMask


def clip_classification(served: ServedRequest, clip: Clip, top_k: int, explain: bool) -> CacheableResponse:
    """The response to a clip that was classified. Video models cannot explain their answers yet."""
    (outcome,) = served.outcomes
    result, frame_scores = outcome.result, outcome.result.over_time
    fields: dict[str, object] = {
        "predictions": prediction_fields(served.card, result, top_k),
        "over_time": [
            {
                "at_s": round(clip.at_s[frame], 3),
                "predictions": prediction_fields(served.card, replace(result, scores=scores), top_k),
            }
            for frame, scores in zip(
                result.frames, () if frame_scores is None else frame_scores, strict=False
            )
        ],
        "clip": clip_fields(clip, [clip.at_s[frame] for frame in result.frames]),
        "compute": served.compute(),
    }
    if explain:
        fields["explain"] = None
    return served.to_response(fields)


def clip_segmentation(served: ServedRequest, clip: Clip, masks: Sequence[TimedMask]) -> CacheableResponse:
    """The response to a clip that was segmented, with the mask of each sampled frame."""
    frames = []
    for mask in masks:
        fields: dict[str, object] = {
            "at_s": round(mask.at_s, 3),
            "segments": segment_fields(served.card, mask.rendered),
            "mask": data_url("image/png", mask.rendered.mask),
        }
        if mask.rendered.overlay is not None:
            fields["overlay"] = data_url("image/jpeg", mask.rendered.overlay)
        frames.append(fields)
    return served.to_response(
        {
            "frames": frames,
            "clip": clip_fields(clip, [mask.at_s for mask in masks]),
            "windows": len(served.outcomes),
            "compute": served.compute(),
        }
    )


def clip_fields(clip: Clip, at_s: Sequence[float]) -> dict[str, object]:
    """A clip as the JSON of `ClipFields`. `at_s`: times of the frames that the model used."""
    return {
        "width": clip.size[0],
        "height": clip.size[1],
        "duration_s": round(clip.duration_s, 3),
        "sampled_s": [round(at, 3) for at in at_s],
    }
