"""Own models without torch, for tests."""

from typing import Any

import numpy as np
from PIL import Image


class Brightness:
    """Says whether an image is dark or bright."""

    labels = ("dark", "bright")
    sizes = (32, 64)

    def __init__(self) -> None:
        self.batches: list[Any] = []
        """The batches of all calls."""

    def predict(self, batch: Any) -> Any:
        """Scores (B, 2) of pixels (B, S, S, 3)."""
        self.batches.append(batch)
        shares = batch.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - shares, shares], 1)


class TwoNetworks(Brightness):
    """As `Brightness`, in two variants; the small one always says dark."""

    variants = ("small", "large")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def predict(self, batch: Any, variant: str = "", size: int = 0) -> Any:
        """Scores, and a record of the variant and the size."""
        self.calls.append((variant, size))
        scores = super().predict(batch)
        return np.broadcast_to([1.0, 0.0], scores.shape) if variant == "small" else scores


class FirstPixels:
    """Answers a label for each image, out of the red of its first pixel; some images fail."""

    labels = ("zero", "one")
    sizes = (16,)
    version = "1"

    def preprocess(self, image: Image.Image) -> dict[str, int]:
        """A table with the red of the first pixel. Red 13 fails."""
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        if pixel[0] == 13:
            raise ValueError("thirteen")
        return {"red": pixel[0]}

    def predict(self, batch: list[dict[str, int]]) -> list[Any]:
        """Labels. Red 200 fails alone, and red 201 fails its batch."""
        if any(item["red"] == 201 for item in batch):
            raise ArithmeticError("201 is too much")
        return [
            ValueError("200 fails") if item["red"] == 200 else self.labels[item["red"] % 2] for item in batch
        ]


def plain_image(red: int, side: int = 16) -> Any:
    """Square pixels of one colour."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 0] = red
    return pixels
