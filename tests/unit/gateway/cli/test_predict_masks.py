"""`foveate predict` with a segmentation model: the classes of the mask, as JSON and on terminals."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from foveate.core.errors import BrokenMedia, RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.gateway.cli.predict import check_takes_images
from foveate.gateway.cli.predict_masks import SegmentedImage, segment, show
from tests.support.fake_runner import FakeRunner
from tests.support.red_segmenter import RedSegmenter, image_of, red_corner_png


def answer() -> SegmentedImage:
    runner = RedSegmenter()
    return segment(runner, red_corner_png(), runner.card.full, 10**6)


def printed(encoding: str, colours: bool) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    system = "truecolor" if colours else None
    show(Console(file=stream, width=100, force_terminal=colours, color_system=system), answer())  # type: ignore[arg-type]
    stream.seek(0)
    return stream.read()


def test_the_fields_are_those_of_the_segment_route() -> None:
    fields = answer().fields
    (red,) = fields["segments"]
    assert (red["label"], red["box"]) == ("red", (0, 0, 160, 120))
    assert red["share"] == pytest.approx(0.25, abs=0.01)
    mask = image_of(fields["mask"])
    assert mask.size == (fields["width"], fields["height"]) == (320, 240)
    assert (np.asarray(mask)[:100, :140] == red["value"]).all()
    assert (np.asarray(mask)[140:] == 0).all()


def test_the_mask_is_printed_in_colours_or_in_letters() -> None:
    coloured = printed("utf-8", colours=True)
    assert re.search(r"\x1b\[38;2;[0-9;]+m(██)+", coloured)
    plain = printed("ascii", colours=False)
    assert "aa" in next(line for line in plain.splitlines() if "red" in line)
    rows = [line for line in plain.splitlines() if set(line) <= set("a.") and len(line) == 80]
    assert (len(rows), rows[0], rows[-1]) == (30, "a" * 40 + "." * 40, "." * 80)


def test_an_image_that_cannot_be_segmented_fails_in_one_sentence() -> None:
    runner = RedSegmenter()
    with pytest.raises(BrokenMedia, match="not an image"):
        segment(runner, b"no image", runner.card.full, 10**6)

    class FailingSegmenter(RedSegmenter):
        def segment(self, pixels: np.ndarray) -> Result:
            return RunFailed("it failed")  # type: ignore[return-value]

    failing = FailingSegmenter()
    with pytest.raises(RunFailed, match="it failed"):
        segment(failing, red_corner_png(), failing.card.full, 10**6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "clicks"}, "finds the object at points of an image: .* with points to /segment"),
        ({"task": "chat"}, "answers questions about images: ask it with `foveate ask`"),
        ({"frames": 8}, "takes clips, not images: .* send clips to /classify"),
    ],
)
def test_a_model_that_takes_more_than_an_image_is_refused(changes: dict[str, object], sentence: str) -> None:
    card = replace(FakeRunner("m").card, **changes)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=sentence):
        check_takes_images(card)
