"""What a user states about a checkpoint, because its weights alone do not show it."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from foveate.core.class_labels import label_problem, labels_in_order
from foveate.core.model import CropMode, Interpolation

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
"""Activation of the MLP. `quick_gelu` is that of OpenAI's CLIP weights, `silu` that of SwiGLU."""
Pool = Literal["token", "avg", "map", "token_avg"]
"""Input of the classifier: the first prefix token, the mean over patches, attention pooling, or the first
two, one after the other."""
Rope = Literal["none", "cat", "dinov3"]
"""Rotary positions, by timm's names. The coordinates of a patch are its row and column (`cat`), or are
centred and lie between -1 and 1 at any image size (`dinov3`)."""


MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 10, 4096
"""Smallest and largest side of the input in pixels. A plan names sides from 10 on, and position embeddings of
a side of 100,000 pixels would take 20 GB."""
IMAGE_SIZES = f"sides are {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels"
"""The end of a sentence that refuses another side."""


class CheckpointOptions(BaseModel):
    """What the weights of a checkpoint do not show. What is none here is not stated.

    Raises pydantic's ValidationError for unknown names and for values out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, float, float] | None = None
    """Mean of each channel in 0..1; one number stands for all channels."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel in 0..1; one number stands for all channels."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Side of the crop over the shorter side of the resized image."""
    crop_mode: CropMode | None = None
    """center keeps the aspect ratio; squash resizes both sides to the same length."""
    interpolation: Interpolation | None = None
    """Filter that resizes images."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of each block."""
    activation: Activation | None = None
    """Activation of the MLP."""
    eps: float | None = Field(default=None, gt=0, lt=1)
    """Epsilon of the layer norms."""
    pool: Pool | None = None
    """Input of the classifier: the class token, the average of the patches, or both, one after the other."""
    image_size: int | None = Field(default=None, ge=MIN_IMAGE_SIZE, le=MAX_IMAGE_SIZE)
    """Side of the input in pixels, as a plan can name it; the position embeddings are interpolated to it."""
    labels: tuple[str, ...] | str | None = None
    """Class names in the order of the logits, a table of names by class index, or the path of a text file
    with one name in each line."""
    architecture: str | None = None
    """timm's name of the network, as in vit_small_patch16_dinov3: the source of all that neither the weights
    show nor another option states. Weights do not show rotary positions."""
    prefix: str | None = None
    """What the names of the network's parameters begin with, up to a dot. Other parameters are left out."""

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_channels(cls, value: Any) -> Any:
        """One value per channel, from a text with commas or from a single number for all channels."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
            value = value[0] if len(value) == 1 else value
        if isinstance(value, list | tuple) and len(value) != 3:
            raise ValueError("it takes one number, or three separated by commas: red, green, blue")
        return value if value is None or isinstance(value, list | tuple) else (value, value, value)

    @field_validator("mean", "std")
    @classmethod
    def _check_channels(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> Any:
        """Refuse values for channels in 0..255, and a deviation of zero."""
        for each in value or ():
            if not 0 <= each <= 1:
                raise ValueError(f"{each:g} is not in 0..1; divide values for channels in 0..255 by 255")
            if info.field_name == "std" and each == 0:
                raise ValueError("a deviation is greater than 0")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _sort_labels(cls, value: Any) -> Any:
        """Class names in order: a table by class index becomes a list without gaps."""
        return labels_in_order(value) if isinstance(value, Mapping) else value

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[str, ...] | str | None) -> Any:
        """Refuse what `label_problem` names; a text is the path of a file."""
        if isinstance(value, tuple) and (problem := label_problem(value)):
            raise ValueError(problem)
        return value

    def over(self, other: "CheckpointOptions") -> "CheckpointOptions":
        """These options, and those of the other where this one states nothing."""
        return other.model_copy(update=self.stated())

    def stated(self) -> dict[str, Any]:
        """The values that are stated, by name."""
        return {name: value for name, value in self if value is not None}


NOTHING_STATED = CheckpointOptions()


def flag_of(name: str) -> str:
    """The command line's flag of an option: `crop_pct` -> `--crop-pct`."""
    return f"--{name.replace('_', '-')}"


def text_of(value: object) -> str:
    """A value as the flag takes it: `(0.5, 0.5, 0.5)` -> `0.5,0.5,0.5`."""
    if isinstance(value, tuple):
        return ",".join(text_of(each) for each in value)
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
