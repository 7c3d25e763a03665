"""Classes from the features that a segmentation model with the same trunk has cached."""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.cache.entry import decode_entry, encode_entry
from foveate.gateway.caching.features import CachedImage, cached_image_of
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.dense_heads import SMALL, dense_checkpoint
from tests.support.gateway import Gateway, serving
from tests.support.point_prompt_gateway import GatedRunner, feature_store, scene_png
from tests.support.point_prompt_heads import with_point_prompts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]


def classifier_checkpoint() -> Checkpoint:
    """A classifier with the trunk of the segmentation model."""
    segmenter = dense_checkpoint()
    model = ElasticViT(SMALL).eval()
    model.load_state_dict({n: v for n, v in segmenter.model.state_dict().items() if "dense." not in n})
    return Checkpoint("tiny", SMALL, labels=segmenter.labels, model=model)


def runners() -> tuple[GatedRunner, GatedRunner]:
    """A classifier and a segmentation model with the same trunk."""
    return GatedRunner(classifier_checkpoint()), GatedRunner(with_point_prompts())


def serving_both(
    classifier: GatedRunner, segmenter: GatedRunner, **settings: Any
) -> AbstractAsyncContextManager[Gateway[GatedRunner]]:
    """A gateway with both models."""
    return serving(classifier, segmenter, models=("tiny", "tiny-seg"), **settings)


async def ask(gateway: Gateway[Any], path: str, body: bytes, **headers: Any) -> httpx.Response:
    response = await gateway.post(path, body, **headers)
    assert response.status_code == 200, response.text
    return response


def square_png(size: tuple[int, int] = (240, 240)) -> bytes:
    return scene_png(0, size)


@pytest.mark.parametrize("first", ["/segment", "/segment?points=50%2C60"])
async def test_square_image_is_classified_from_features_of_segment_without_a_forward(first: str) -> None:
    classifier, segmenter = runners()
    async with serving_both(classifier, segmenter) as gateway:
        computed = await ask(gateway, "/classify", square_png(), cache_control="no-cache")
        assert classifier.images == 1
        await ask(gateway, first, square_png())
        cached = await ask(gateway, "/classify", square_png())
        assert (classifier.images, segmenter.images) == (1, 1)
        assert cached.headers["x-cache"] == "hit"
        assert cached.headers["x-foveate-plan"] == computed.headers["x-foveate-plan"]
        for score, expected in zip(cached.json()["predictions"], computed.json()["predictions"], strict=True):
            assert score["label"] == expected["label"]
            assert score["score"] == pytest.approx(expected["score"], abs=2e-3)
        assert cached.json()["compute"]["gflops"] == 0
        again = await ask(gateway, "/classify", square_png(), x_min_quality="1")
        assert again.headers["x-cache"] == "hit"


@pytest.mark.parametrize(
    ("size", "headers"),
    [
        ((240, 200), {}),
        ((240, 240), {"cache_control": "no-cache"}),
        ((240, 240), {"x_plan": "full"}),
        ((240, 240), {"x_tenant": "another"}),
    ],
    ids=["another view", "no cache", "pinned plan", "another tenant"],
)
async def test_request_that_cached_features_do_not_answer_runs_the_model(
    size: tuple[int, int], headers: dict[str, str]
) -> None:
    classifier, segmenter = runners()
    async with serving_both(classifier, segmenter, tenant_header="x-tenant") as gateway:
        await ask(gateway, "/segment", square_png(size))
        await ask(gateway, "/classify", square_png(size), **headers)
        assert classifier.images == 1


async def test_features_of_an_unmeasured_plan_answer_only_without_min_quality() -> None:
    classifier, segmenter = runners()
    async with serving_both(classifier, segmenter) as gateway:
        await ask(gateway, "/segment", square_png())
        store = feature_store(gateway)
        (key,) = store._entries
        cached = cached_image_of(decode_entry(await store.get(key) or b""))
        assert cached is not None
        cheap = segmenter.card.plan("evit:0.5")
        worse = CachedImage(cached.size, {0: replace(cached.tiles[0], plan=cheap)})
        await store.put(key, encode_entry(worse.entry()), 60)
        await ask(gateway, "/classify", square_png(), x_min_quality="0.5")
        assert classifier.images == 1
        response = await ask(gateway, "/classify?top_k=2", square_png())
        assert (response.headers["x-cache"], classifier.images) == ("hit", 1)
        assert response.headers["x-foveate-plan"] == "tiny@64/evit:0.5/fp32"


async def test_models_with_different_trunks_share_no_features() -> None:
    other = classifier_checkpoint()
    next(other.model.blocks[-1].parameters()).data.add_(1)
    assert TorchRunner(other).card.trunk != TorchRunner(classifier_checkpoint()).card.trunk
    assert TorchRunner(dense_checkpoint()).card.trunk == TorchRunner(classifier_checkpoint()).card.trunk
