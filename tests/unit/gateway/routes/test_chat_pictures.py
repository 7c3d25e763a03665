"""The pictures of a chat: loaded together, and given up together."""

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from foveate.core.errors import BodyTooLarge, BrokenMedia, Overloaded
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.request import Objective
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.chat.messages import PictureSource
from foveate.gateway.decoding import Decoding
from foveate.gateway.fetching.fetcher import UrlFetcher
from foveate.gateway.limits import AdmissionLimiter, Permit, SpoolBudget
from foveate.gateway.meter import Meter
from foveate.gateway.routes.chat_pictures import ChatPictures, ImageFetcher
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog
from foveate.gateway.routes.image_input import ImageInput
from tests.support.chat_gateway import data_url
from tests.support.fake_runner import FakeRunner
from tests.support.media_samples import encode, scene

pytestmark = pytest.mark.anyio

CARD = replace(FakeRunner().card, input=InputSpec(), task="chat")
CONTEXT = RequestContext("1", CARD, Objective(), None, ClientChoice(None, None), None, 0.0, RequestLog())
PERMIT = Permit(AdmissionLimiter(1, 10**9, 10**9))
PNG = encode(scene(80, 60), "PNG")


def sources(*urls: str) -> list[PictureSource]:
    return [PictureSource(url, "auto", f"messages[0].content[{n}].image_url") for n, url in enumerate(urls)]


def pictures(fetcher: ImageFetcher | None = None) -> ChatPictures:
    decoding = Decoding(1, HostLoadMonitor())
    images = ImageInput(decoding, Settings(), {CARD.name: Meter(Metrics(), CARD)})
    urls = UrlFetcher(Settings(), Metrics(), SpoolBudget(1, 1), decoding)
    return ChatPictures(decoding, images, fetcher or urls)


async def test_pictures_keep_their_order_and_have_digests_of_their_bytes() -> None:
    other = encode(scene(300, 300, seed=1), "BMP")
    loaded = await pictures().load(CONTEXT, sources(*map(data_url, (PNG, other, PNG))), PERMIT)
    assert [each.digest for each in loaded] == [hashlib.sha256(data).digest() for data in (PNG, other, PNG)]
    assert (loaded[0].pixels == loaded[2].pixels).all()
    assert isinstance(loaded[1].pixels, np.ndarray)
    assert loaded[1].size_bytes == loaded[1].pixels.nbytes


async def test_no_pictures_are_loaded_at_once() -> None:
    assert await pictures().load(CONTEXT, [], PERMIT) == []


class SlowFetcher:
    """Fetches one URL for ever, and refuses all others."""

    def __init__(self, error: Exception) -> None:
        self.error, self.cancelled = error, False

    async def fetch_image(self, url: str, permit: Permit, deadline: float | None = None) -> bytes:
        if url != "slow":
            await asyncio.sleep(0)
            raise self.error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return b""


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (BodyTooLarge("large"), "messages[0].content[1].image_url.url"),
        (BrokenMedia("broken"), "messages[0].content[1].image_url.url"),
        (Overloaded("busy"), None),
    ],
)
async def test_a_picture_that_fails_ends_the_others(error: Exception, param: str | None) -> None:
    fetcher = SlowFetcher(error)
    with pytest.raises(type(error)) as caught:
        await pictures(fetcher).load(CONTEXT, sources("slow", "bad"), PERMIT)
    await asyncio.sleep(0)
    assert fetcher.cancelled
    assert getattr(caught.value, "param", None) == param
