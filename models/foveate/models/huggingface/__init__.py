"""Checkpoints of transformers by name: segmentation of pictures, and clips named."""

from foveate.core.plan import Precision
from foveate.core.profile import Profile
from foveate.models.huggingface.fetch import PREFIX, Pretrained, load, named
from foveate.models.huggingface.runner import PretrainedRunner
from foveate.models.huggingface.segmenters import Segmenter
from foveate.models.huggingface.videos import VideoClassifier

__all__ = ["PREFIX", "Pretrained", "PretrainedRunner", "load", "named", "runner"]


def runner(
    pretrained: Pretrained,
    precision: Precision = "fp32",
    device: str = "cpu",
    max_batch: int = 0,
    profile: Profile | None = None,
) -> PretrainedRunner:
    """What runs the checkpoint. Raises SetupError for one that cannot run."""
    kind = Segmenter if pretrained.task == "segment" else VideoClassifier
    return kind(pretrained, precision, device, max_batch, profile)
