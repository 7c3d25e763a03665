"""Images of answers: masks along the ladder, masks over a clip, and scores over a clip."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from foveate.core.model import InputSpec
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from foveate.gateway.media.image_tiles import decode_tiles, decode_whole
from foveate.gateway.media.masks import ClassMask, assemble_mask, overlay
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import Clip, decode_clip, upright_frames
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes.video_input import center_crop
from foveate.gateway.schemas.video_masks import tile_boxes
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter

PIXELS = 10**8


def along_ladder(runner: TorchRunner, jpegs: list[bytes], plans: list[Plan], path: Path) -> None:
    """Write the masks of these images: one row per image, one column per plan."""
    figure = Figure(figsize=(2.6 * len(plans), 2.1 * len(jpegs)), layout="constrained")
    axes = figure.subplots(len(jpegs), len(plans), squeeze=False)
    for row, jpeg in zip(axes, jpegs, strict=True):
        tiled = decode_tiles(jpeg, runner.card.input or InputSpec(), runner.full.image_size, PIXELS)
        image = decode_whole(jpeg, PIXELS)
        for axis, plan in zip(row, plans, strict=True):
            results = runner.run(runner.stack(list(tiled.pixels), plan), plan)
            answers = [result for result in results if isinstance(result, Result)]
            mask = assemble_mask(tiled.size, tiled.tiles, [r.maps for r in answers if r.maps])
            axis.imshow(blended(image, mask))
            axis.set_axis_off()
            axis.set_title(
                f"{plan.relative_to(runner.full)}, {sum(r.gflops for r in answers):.2f} GFLOPs", fontsize=7
            )
    figure.savefig(path, dpi=110)


def over_clip(runner: ClipSegmenter, video: bytes, plans: list[Plan], path: Path) -> None:
    """Write the masks of the frames of a video: one row per plan, one column per frame."""
    spec, limits = runner.card.input or InputSpec(), ClipLimits()
    clip = decode_clip(video, runner.frames, runner.full.image_size, tile_boxes, spec.interpolation, limits)
    images = list(upright_frames(video, runner.frames, limits))
    figure = Figure(figsize=(1.7 * len(images), 1.9 * len(plans)), layout="constrained")
    for row, plan in zip(figure.subplots(len(plans), len(images), squeeze=False), plans, strict=True):
        results = runner.run(runner.stack(list(clip.pixels), plan), plan)
        answers = [result for result in results if isinstance(result, Result)]
        gflops = sum(result.gflops for result in answers)
        for number, (axis, image) in enumerate(zip(row, images, strict=True)):
            maps: list[ClassMaps] = [result.maps_at(number) for result in answers]
            axis.imshow(blended(image, assemble_mask(clip.size, tiles(*clip.size), maps)))
            axis.set_axis_off()
            axis.set_title(f"{clip.at_s[number]:.1f} s", fontsize=7)
        row[0].set_title(
            f"{plan.relative_to(runner.full)}\n{gflops:.1f} GFLOPs, {clip.at_s[0]:.1f} s", fontsize=7
        )
    figure.savefig(path, dpi=110)


def scores_over_time(runner: ClipRunner, video: bytes, plan: Plan, path: Path) -> None:
    """Write the sampled frames of a video, and below them the scores after each frame.

    Raises the error of the runner, and ValueError if there are no scores over time.
    """
    spec, limits = runner.card.input or InputSpec(), ClipLimits()
    side = runner.full.image_size
    clip: Clip = decode_clip(video, runner.frames, side, center_crop(spec, side), spec.interpolation, limits)
    (result,) = runner.run(runner.stack([clip.pixels[0]], plan), plan)
    if not isinstance(result, Result) or result.over_time is None:
        raise (
            result if isinstance(result, Exception) else ValueError("the runner returned no scores over time")
        )
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, 2])
    above.imshow(np.concatenate([clip.pixels[0][frame] for frame in result.frames], 1))
    above.set_axis_off()
    times = [clip.at_s[frame] for frame in result.frames]
    for label in np.argsort(-result.over_time.max(0))[:5].tolist():
        below.plot(times, result.over_time[:, label], "o-", ms=3, label=runner.card.labels[label])
    below.set_xlabel("seconds")
    below.set_ylabel("score")
    below.set_ylim(0, 1.02)
    below.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    below.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def blended(image: Image.Image, mask: ClassMask) -> Image.Image:
    """The overlay that the server returns."""
    return Image.open(io.BytesIO(overlay(image, mask, "PNG")))
