"""A scikit-learn model on images: handwritten digits, trained at the start in a second. It needs no torch.

pip install scikit-learn
python examples/sklearn_images.py                 # serves it
python examples/sklearn_images.py digit.png       # writes a digit to send
curl -F file=@digit.png http://127.0.0.1:8000/classify
"""

import sys
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import foveate.serve

TRAINED = 1500
"""Digits that are trained on; the other 297 are held out."""


class Digits:
    """Reads a handwritten digit."""

    name = "digits"
    labels = tuple("0123456789")
    sizes = (32,)

    def __init__(self) -> None:
        digits = load_digits()
        self.classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        self.classifier.fit(digits.data[:TRAINED], digits.target[:TRAINED])

    def preprocess(self, image: Image.Image) -> Any:
        """The 64 features of scikit-learn's digits: the grey of 8 x 8 fields, 0 to 16."""
        small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
        return np.asarray(small, np.float64).ravel() * 16 / 255

    def predict(self, batch: Any) -> Any:
        """Probabilities (B, 10) of features (B, 64)."""
        return self.classifier.predict_proba(batch)


def write_digit(path: str) -> None:
    """Write a digit that was held out, enlarged to 64 x 64 pixels. It is a 3."""
    digits = load_digits()
    number = TRAINED + int(np.argmax(digits.target[TRAINED:] == 3))
    pixels = np.uint8(digits.images[number] * 255 / 16)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    if sys.argv[1:]:
        write_digit(sys.argv[1])
    else:
        foveate.serve.serve(Digits())
