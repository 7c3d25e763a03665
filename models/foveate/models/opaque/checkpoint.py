"""A network that runs as it is, and the family of networks that answer under one name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec, Task
from foveate.models.zoo import RGB


@dataclass(frozen=True, slots=True)
class OpaqueCheckpoint:
    """A network with its description. The network is in float32 and eval mode, on the CPU."""

    name: str
    model: nn.Module
    """Maps normalised images (B, 3, S, S) to class scores (B, C), or to embeddings (B, D)."""
    labels: tuple[str, ...]
    """Class names in the order of the scores, one for each; empty for a network that embeds images."""
    image_size: int
    """Side in pixels of the images that the network was trained for."""
    input: InputSpec
    mean: RGB
    """Subtracted from each channel in 0..1, before the division by `std`."""
    std: RGB
    sizes: tuple[int, ...] = ()
    """Smaller image sizes that the network takes too, in pixels."""
    multi_label: bool = False
    """Whether each class has a probability of its own (sigmoid). Otherwise they sum to 1 (softmax)."""
    description: str = ""
    licence: str = ""
    source: str = ""

    @property
    def task(self) -> Task:
        """classify for a network with classes, else embed."""
        return "classify" if self.labels else "embed"

    def table(self) -> Mapping[str, Any]:
        """Everything except the weights that answers depend on."""
        return {
            "input": asdict(self.input),
            "mean": self.mean,
            "std": self.std,
            "size": self.image_size,
            "multi_label": self.multi_label,
        }


@dataclass(frozen=True, slots=True)
class OpaqueFamily:
    """Classifiers of the same classes, which answer under one name.

    Raises SetupError for members with other classes, and for equal names.
    """

    name: str
    members: tuple[OpaqueCheckpoint, ...]
    """The full model first. Each one keeps its own normalisation; images are cropped as for the first."""

    def __post_init__(self) -> None:
        own, *siblings = self.members
        if len({member.name for member in self.members}) < len(self.members):
            raise SetupError(f"two members of the family {self.name} have the same name")
        for sibling in siblings:
            for what in ("labels", "multi_label"):
                if getattr(sibling, what) != getattr(own, what):
                    raise SetupError(f"{sibling.name} cannot answer for {own.name}: their {what} differ")

    @property
    def own(self) -> OpaqueCheckpoint:
        """The full model."""
        return self.members[0]

    @property
    def siblings(self) -> tuple[OpaqueCheckpoint, ...]:
        """All members but the full model."""
        return self.members[1:]
