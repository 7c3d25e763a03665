"""Images on the task routes: decoded to the size of the model or of the pinned plan, until the deadline."""

from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest

from foveate.core.errors import DeadlineExceeded, ImageTooLarge, UnsupportedMedia
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec, ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.decoding import Decoding
from foveate.gateway.meter import Meter
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog
from foveate.gateway.routes.image_input import ImageInput, input_side
from tests.support.fake_runner import FakeRunner
from tests.support.media_samples import encode, scene

pytestmark = pytest.mark.anyio
CARD = FakeRunner(spec=InputSpec()).card
UNDECODED = FakeRunner().card
IMAGE = encode(scene(64, 48), "PNG")


def context(
    card: ModelCard = CARD, plan: Plan | None = None, deadline: float | None = None
) -> RequestContext[None]:
    """A request to this model."""
    choice = ClientChoice(None, None)
    return RequestContext("id", card, Objective(deadline), plan, choice, None, monotonic(), RequestLog())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def image_input(metrics: Metrics) -> Iterator[ImageInput]:
    decoding = Decoding(1, HostLoadMonitor())
    yield ImageInput(decoding, Settings(max_pixels=10_000), {"fake": Meter(metrics, CARD)})
    decoding.close()


def test_side_is_that_of_the_full_plan_or_of_a_larger_pinned_plan() -> None:
    assert input_side(context()) == 32
    assert input_side(context(plan=Plan("fake", 16))) == 32
    assert input_side(context(plan=Plan("fake", 48))) == 48


def test_side_is_that_of_the_ladders_largest_plan() -> None:
    """All requests of a batch have one size, whatever plan the policy chooses for it."""
    larger = Rung(Plan("fake", 40, reducer="evit:0.5"), 0.5, 5, 1.0)
    card = replace(CARD, ladder=(larger, *CARD.ladder))
    assert input_side(context(card)) == 40
    assert input_side(context(card, Plan("fake", 32))) == 40
    assert input_side(context(card, Plan("fake", 48))) == 48


async def test_image_is_decoded_and_timed(image_input: ImageInput, metrics: Metrics) -> None:
    pixels, seconds = await image_input.decode(context(), IMAGE)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    assert seconds > 0
    labels = {"model": "fake", "stage": "decode"}
    assert metrics.registry.get_sample_value("foveate_stage_seconds_count", labels) == 1


async def test_model_without_an_input_specification_gets_the_bytes(image_input: ImageInput) -> None:
    assert await image_input.decode(context(UNDECODED), b"anything") == (b"anything", 0.0)
    with pytest.raises(UnsupportedMedia, match="takes no images"):
        await image_input.decode_tiles(context(UNDECODED), IMAGE)


async def test_all_tiles_or_only_the_chosen_one_are_decoded(image_input: ImageInput) -> None:
    wide = encode(scene(240, 40), "PNG")
    every, _ = await image_input.decode_tiles(context(), wide)
    chosen, _ = await image_input.decode_tiles(context(), wide, lambda tiles, _: len(tiles) - 1)
    assert every.size == chosen.size == (240, 40)
    assert len(every.pixels) > 1
    assert len(chosen.pixels) == 1
    assert (chosen.pixels[0] == every.pixels[-1]).all()


async def test_limits_are_the_pixels_and_the_deadline(image_input: ImageInput) -> None:
    with pytest.raises(ImageTooLarge):
        await image_input.decode(context(), encode(scene(200, 100), "PNG"))
    late = context(deadline=monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        await image_input.decode(late, IMAGE)
    with pytest.raises(DeadlineExceeded):
        await image_input.decode_tiles(replace(late, card=CARD), IMAGE)
