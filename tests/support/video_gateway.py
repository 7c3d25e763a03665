"""A gateway with small models of images and videos, and the requests that tests send to it."""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx

from foveate.core.model import InputSpec
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from tests.support.clip_heads import clip_checkpoint
from tests.support.dense_heads import dense_checkpoint
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, serving


def segmenter_with_video() -> TorchRunner:
    """A segmentation model of images with a clip model, as the shipped one."""
    runner = TorchRunner(dense_checkpoint())
    clip_model = ClipSegmenter(replace(dense_checkpoint(), name="tiny-seg-clip"), frames=4)
    runner.submodels, runner.card = (clip_model,), replace(runner.card, clip_model="tiny-seg-clip")
    return runner


def serving_videos(videos: bool = True, **settings: Any) -> AbstractAsyncContextManager[Gateway[FakeRunner]]:
    """A gateway with a fake model of images. videos: models of videos too, for both tasks."""
    others = (ClipRunner(clip_checkpoint()), segmenter_with_video()) if videos else ()
    return serving(FakeRunner("images", spec=InputSpec()), *others, **settings)


async def post_video(gateway: Gateway[Any], path: str, body: bytes, **headers: Any) -> httpx.Response:
    """Send a video, by default as video/mp4."""
    return await gateway.post(path, body, **({"content_type": "video/mp4"} | headers))
