"""What one model has seen of a picture answers for another one on the same trunk."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.cache.entry import decode_entry, encode_entry
from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.caching.features import CachedImage, cached_image_of
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.dense_heads import SMALL, dense_checkpoint
from tests.support.media_samples import encode, scene
from tests.support.point_prompt_heads import with_point_prompts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]
PNG = {"content-type": "image/png"}


class Counted(TorchRunner):
    """The real model, counting its pictures."""

    pictures = 0

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.pictures += len(batch)
        return super().run(batch, plan)


def classifier() -> Checkpoint:
    """The trunk of the model that names pixels, for whole pictures."""
    segmenter = dense_checkpoint()
    model = ElasticViT(SMALL).eval()
    model.load_state_dict({n: v for n, v in segmenter.model.state_dict().items() if "dense." not in n})
    return Checkpoint("tiny", SMALL, labels=segmenter.labels, model=model)


class Served:
    """Both models behind one gateway."""

    def __init__(self, settings: Settings) -> None:
        self.classifier, self.segmenter = Counted(classifier()), Counted(with_point_prompts())
        metrics = Metrics()
        cluster = LocalCluster([lambda: self.classifier, lambda: self.segmenter], metrics)
        self.metrics, self.app = metrics, create_app(cluster, settings, metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def ask(self, path: str, picture: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.client.post(path, content=picture, headers=PNG | named)
        assert answer.status_code == 200, answer.text
        return answer


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    here = Served(Settings(models=("tiny", "tiny-seg"), **settings))
    async with here.app.router.lifespan_context(here.app), here.client:
        yield here


def picture(size: tuple[int, int] = (240, 240)) -> bytes:
    return encode(scene(*size, 0), "PNG")


@pytest.mark.parametrize("first", ["/segment", "/segment?points=50%2C60"])
async def test_a_square_picture_that_was_seen_for_its_pixels_is_named_without_a_forward(first: str) -> None:
    async with served() as here:
        computed = await here.ask("/classify", picture(), cache_control="no-cache")
        assert here.classifier.pictures == 1
        await here.ask(first, picture())
        told = await here.ask("/classify", picture())
        assert (here.classifier.pictures, here.segmenter.pictures) == (1, 1)
        assert told.headers["x-cache"] == "hit"
        assert told.headers["x-foveate-plan"] == computed.headers["x-foveate-plan"]
        for one, other in zip(told.json()["predictions"], computed.json()["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=2e-3)
        assert told.json()["compute"]["gflops"] == 0
        again = await here.ask("/classify", picture(), x_min_quality="1")
        assert again.headers["x-cache"] == "hit"


@pytest.mark.parametrize(
    ("size", "headers"),
    [
        ((240, 200), {}),
        ((240, 240), {"cache_control": "no-cache"}),
        ((240, 240), {"x_plan": "full"}),
        ((240, 240), {"x_tenant": "another"}),
    ],
    ids=["another view", "anew", "a plan of its own", "another tenant"],
)
async def test_what_is_not_the_same_question_is_answered_by_the_model(
    size: tuple[int, int], headers: dict[str, str]
) -> None:
    async with served(tenant_header="x-tenant") as here:
        await here.ask("/segment", picture(size))
        await here.ask("/classify", picture(size), **headers)
        assert here.classifier.pictures == 1


async def test_a_plan_that_nobody_measured_for_this_task_answers_for_no_floor() -> None:
    async with served() as here:
        await here.ask("/segment", picture())
        store = here.app.state.features
        (key,) = store._entries
        kept = cached_image_of(decode_entry(await store.get(key)))
        assert kept is not None
        cheap = here.segmenter.card.plan("evit:0.5")
        worse = CachedImage(kept.size, {0: replace(kept.windows[0], plan=cheap)})
        await store.put(key, encode_entry(worse.entry()), 60)
        await here.ask("/classify", picture(), x_min_quality="0.5")
        assert here.classifier.pictures == 1
        told = await here.ask("/classify?top_k=2", picture())
        assert (told.headers["x-cache"], here.classifier.pictures) == ("hit", 1)
        assert told.headers["x-foveate-plan"] == "tiny@64/evit:0.5/fp32"


async def test_models_on_other_trunks_are_no_kin() -> None:
    other = classifier()
    next(other.model.blocks[-1].parameters()).data.add_(1)
    assert TorchRunner(other).card.trunk != TorchRunner(classifier()).card.trunk
    assert TorchRunner(dense_checkpoint()).card.trunk == TorchRunner(classifier()).card.trunk
