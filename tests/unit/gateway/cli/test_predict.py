"""`foveate predict`: the fields of the answer, the printed summary, and the drawn explanation."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, BrokenMedia
from foveate.gateway.cli.predict import ExplainedPrediction, draw, predict, show
from foveate.models.own.runner import OwnRunner
from foveate.models.runners.image import TorchRunner
from tests.support.measuring import tiny
from tests.support.own_models import Brightness

pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = np.repeat([[[250, 0, 0], [0, 0, 250]]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)
"""(64, 64, 3): red on the left, blue on the right."""


def choosing(rung: int) -> TorchRunner:
    """By content it takes the router (0), whose patches do not divide the image, or full (1)."""
    runner = TorchRunner(tiny())
    runner.content = ContentRungs(("tiny@48", "full"), ((0.0, 0.0, 0.0),), (9.0 if rung == 0 else -9.0,))
    return runner


def answer(runner: TorchRunner, plan: str, top_k: int = 3) -> ExplainedPrediction:
    encoded = io.BytesIO()
    Image.fromarray(HALVES).save(encoded, "png")
    return predict(runner, encoded.getvalue(), runner.card.plan(plan), top_k, 10**6)


def printed(prediction: ExplainedPrediction) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    show(console, prediction)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("rung", "plan", "chosen", "side"),
    [
        (0, "content:0.9", "tiny@48", 3),
        (1, "content:0.9", "full", 4),
        (0, "tiny@48", None, 3),
        (0, "evit:0.6", None, 4),
    ],
)
def test_the_rung_that_the_content_chose_is_returned_printed_and_drawn(
    rung: int, plan: str, chosen: str | None, side: int, tmp_path: Path
) -> None:
    prediction = answer(choosing(rung), plan)
    assert prediction.fields["chosen"] == chosen
    assert prediction.fields["plan"] == ("tiny@48/fp32" if plan == "tiny@48" else f"tiny@64/{plan}/fp32")
    assert prediction.explanation is not None
    assert prediction.explanation.grid == (side, side)
    text = re.sub(r"\x1b[^m]*m", "", printed(prediction))
    assert (f", which chose {chosen}\n" in text) == (chosen is not None)
    rows = [line for line in text.splitlines() if set(line) & set("█░·")]
    assert [len(row) for row in rows] == [2 * side] * side
    draw(prediction, tmp_path / "explanation.png")
    with Image.open(tmp_path / "explanation.png") as page:
        assert page.format == "PNG"


def test_a_patch_is_shown_in_its_mean_colour() -> None:
    for plan, middle in (("full", "250;0;0"), ("content:0.9", "125;0;125")):
        top = next(line for line in printed(answer(choosing(0), plan)).splitlines() if "█" in line)
        colours = re.findall(r"\x1b\[38;2;([0-9;]+)m", top)
        assert colours[:2] == ["250;0;0", middle], "of 3 patches the one between sees both halves"
        assert colours[-1] == "0;0;250"


def test_the_most_probable_classes_come_first() -> None:
    predictions = answer(choosing(0), "full", top_k=99).fields["predictions"]
    assert len(predictions) == 5
    assert [p["score"] for p in predictions] == sorted((p["score"] for p in predictions), reverse=True)
    assert answer(choosing(0), "full", top_k=2).fields["predictions"] == predictions[:2]


def test_a_request_without_an_answer_is_refused_in_one_sentence() -> None:
    runner = choosing(0)
    with pytest.raises(BadPlan, match="no other part goes with it"):
        answer(runner, "content:0.9/depth:2")
    with pytest.raises(BrokenMedia, match="not an image"):
        predict(runner, b"no image", runner.full, 1, 10**6)


def test_a_model_without_known_cost_shows_its_time_alone() -> None:
    encoded = io.BytesIO()
    Image.fromarray(HALVES).save(encoded, "png")
    runner = OwnRunner(Brightness())
    prediction = predict(runner, encoded.getvalue(), runner.full, 2, 10**6)
    assert prediction.fields["predictions"][0]["label"] == "dark"
    text = re.sub(r"\x1b[^m]*m", "", printed(prediction))
    assert re.search(r"cost    [0-9.]+ ms\n", text)
    assert "tokens" not in text
