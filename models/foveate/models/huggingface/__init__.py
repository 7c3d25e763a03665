"""Checkpoints of the transformers library by name: image segmentation and video classification."""

from foveate.core.plan import Precision
from foveate.core.profile import Profile
from foveate.models.huggingface.fetch import Pretrained, is_image_classifier, is_transformers_name, load
from foveate.models.huggingface.runner import PretrainedRunner
from foveate.models.huggingface.segmenters import PretrainedSegmenter
from foveate.models.huggingface.videos import PretrainedVideoClassifier
from foveate.models.weights.local_files import PREFIX

__all__ = [
    "PREFIX",
    "Pretrained",
    "PretrainedRunner",
    "is_image_classifier",
    "is_transformers_name",
    "load",
    "runner",
]


def runner(
    pretrained: Pretrained,
    precision: Precision = "fp32",
    device: str = "cpu",
    max_batch: int = 0,
    profile: Profile | None = None,
) -> PretrainedRunner:
    """The runner of a checkpoint. max_batch: 0 for the device's default.

    Raises SetupError for a checkpoint that cannot run or whose output cannot be read.
    """
    runner_type = PretrainedSegmenter if pretrained.task == "segment" else PretrainedVideoClassifier
    return runner_type(pretrained, precision, device, max_batch, profile)
