"""POST /classify?labels=: probabilities as in transformers, the text cache, options, refusals."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from foveate.cluster.client import WorkerClient
from foveate.cluster.local import LocalCluster
from foveate.cluster.remote import RemoteCluster
from foveate.cluster.worker import Worker
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec, ZeroShot
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.routes.zero_shot import probabilities
from foveate.gateway.schemas.image import Classification
from foveate.models.huggingface.text_runner import TextRunner
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.runners.image import TorchRunner
from tests.support.embedders import embedder
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, assert_problem, serving
from tests.support.loopback import LoopbackTransport
from tests.support.media_samples import encode, scene
from tests.support.text_towers import PREPROCESSOR, SIDE, letters_tokenizer, reference, saved_checkpoint
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]
LABELS = ("cat", "two red cars", "a dog, asleep")
IMAGE = scene(SIDE, SIDE, 1)
PNG = encode(IMAGE, "PNG")
KINDS = ("clip", "siglip")


class CountingText(TextRunner):
    """The real text tower. It records the texts that it embeds."""

    seen: list[str]

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.seen += batch.texts
        return super().run(batch, plan)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(tmp_path_factory.mktemp("checkpoints") / str(request.param), str(request.param))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(tmp_path_factory.mktemp("checkpoints") / "clip", "clip")


def loaded(folder: Path) -> TorchRunner:
    """The model as `foveate serve` loads it, with a text tower that records what it embeds."""
    runner = ImageModelLoader().load(str(folder), LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    (texts,) = runner.submodels
    assert isinstance(texts, TextRunner)
    texts.__class__, texts.seen = CountingText, []  # type: ignore[attr-defined]
    return runner


def seen(runner: TorchRunner) -> list[str]:
    """The texts that were embedded since the start."""
    (texts,) = runner.submodels
    assert isinstance(texts, CountingText)
    return texts.seen


def expected(folder: Path, texts: Sequence[str]) -> Any:
    """The probabilities of transformers' own model for the image: (N,)."""
    kind = folder.name
    model, tokenizer = reference(folder, kind), letters_tokenizer()
    padding: Any = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 48}
    inputs = tokenizer(list(texts), return_tensors="pt", **padding)
    pixels = torch.from_numpy(np.asarray(IMAGE.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(PREPROCESSOR[name])[:, None, None] for name in ("image_mean", "image_std"))
    with torch.inference_mode():
        out = model(pixel_values=((pixels - mean) / std)[None], input_ids=inputs["input_ids"])
    logits = out.logits_per_image[0]
    return (logits.softmax(-1) if kind == "clip" else logits.sigmoid()).numpy()


async def classify(gateway: Gateway[Any], labels: str, **query: str) -> Classification:
    response = await gateway.post("/classify", PNG, query={"labels": labels, **query})
    assert response.status_code == 200, response.text
    return Classification.model_validate_json(response.content)


async def test_probabilities_are_those_of_transformers(folder: Path) -> None:
    async with serving(loaded(folder)) as gateway:
        answer = await classify(gateway, r"cat,two red cars,a dog\, asleep")
        own = await classify(gateway, r"cat,two red cars,a dog\, asleep", template="{}")
    template = {"clip": "a photo of a {}", "siglip": "This is a photo of {}."}[folder.name]
    for body, text in ((answer, template), (own, "{}")):
        scores = expected(folder, [text.format(label) for label in LABELS])
        by_label = {prediction.label: prediction.score for prediction in body.predictions}
        assert by_label == pytest.approx(dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-4)
        assert [LABELS[p.index] for p in body.predictions] == [p.label for p in body.predictions]
        ranked = [p.score for p in body.predictions]
        assert ranked == sorted(ranked, reverse=True) and max(ranked) - min(ranked) > 1e-3
    if folder.name == "clip":
        assert sum(p.score for p in answer.predictions) == pytest.approx(1, abs=1e-5)


async def test_each_text_is_embedded_once(clip_folder: Path) -> None:
    runner = loaded(clip_folder)
    async with serving(runner, cache_bytes=0) as gateway:
        await classify(gateway, "cat,dog")
        await classify(gateway, "dog,cat,fox")
        await classify(gateway, "cat", template="{} on a sofa")
        counts = [
            gateway.metric("foveate_cache_requests_total", cache="texts", result=result)
            for result in ("hit", "miss")
        ]
        assert gateway.metric("foveate_cache_bytes", cache="texts") > 0
    assert sorted(seen(runner)) == [
        "a photo of a cat",
        "a photo of a dog",
        "a photo of a fox",
        "cat on a sofa",
    ]
    assert counts == [2, 4]


async def test_concurrent_requests_share_the_texts(clip_folder: Path) -> None:
    runner = loaded(clip_folder)
    async with serving(runner, cache_bytes=0) as gateway:
        answers = await asyncio.gather(*(classify(gateway, "cat,dog,fox") for _ in range(5)))
    assert len({answer.model_dump_json(include={"predictions"}) for answer in answers}) == 1
    assert sorted(seen(runner)) == ["a photo of a cat", "a photo of a dog", "a photo of a fox"]


async def test_response_cache_tells_labels_and_templates_apart(clip_folder: Path) -> None:
    async with serving(loaded(clip_folder)) as gateway:
        queries: list[dict[str, str]] = [
            {"labels": "cat,dog"}, {"labels": "dog,cat"}, {"labels": "cat,dog", "template": "{}"},
        ]  # fmt: skip
        for expected_cache in ("miss", "hit"):
            for query in queries:
                response = await gateway.post("/classify", PNG, query=query)
                assert response.headers["x-cache"] == expected_cache


def sent_as(place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request with these options in the query, a form or a JSON body."""
    if place == "query":
        return {"content": PNG, "headers": {"content-type": "image/png"}, "params": options}
    if place == "form":
        return {"files": {"file": ("a.png", PNG, "image/png")}, "data": options}
    return {"json": {"data": base64.b64encode(PNG).decode(), **options}}


@pytest.mark.parametrize("place", ["query", "form", "json"])
async def test_labels_stand_wherever_options_do(clip_folder: Path, place: str) -> None:
    async def labels_of(gateway: Gateway[Any], **options: Any) -> list[str]:
        response = await gateway.client.post("/classify", **sent_as(place, options))
        assert response.status_code == 200, response.text
        predictions = Classification.model_validate_json(response.content).predictions
        return [p.label for p in sorted(predictions, key=lambda p: p.index)]

    async with serving(loaded(clip_folder)) as gateway:
        assert await labels_of(gateway, labels="cat, dog ,red fox") == ["cat", "dog", "red fox"]
        assert await labels_of(gateway, labels=r"a\,b,c\d,e\\,f") == ["a,b", r"c\d", "e\\", "f"]
        assert await labels_of(gateway, labels=["a,b", "c d"]) == ["a,b", "c d"]
        assert await labels_of(gateway, labels="cat,dog", model="clip", top_k="1") != []


async def test_a_thousand_labels_fit_into_every_place(clip_folder: Path) -> None:
    labels = [f"thing number {number}" for number in range(1000)]
    async with serving(loaded(clip_folder)) as gateway:
        for place, value in (("query", ",".join(labels)), ("form", ",".join(labels)), ("json", labels)):
            response = await gateway.client.post("/classify", **sent_as(place, {"labels": value}))
            assert response.status_code == 200, response.text
            assert len(response.json()["predictions"]) == 5
        response = await gateway.post("/classify", PNG, query={"labels": ",".join([*labels, "one more"])})
        assert_problem(response, 400, "a request has at most 1000 labels")


async def test_default_models_follow_the_labels(clip_folder: Path) -> None:
    runner = loaded(clip_folder)
    async with serving(FakeRunner(spec=InputSpec()), runner, TorchRunner(embedder())) as gateway:
        plain = await gateway.post("/classify", PNG)
        assert plain.json()["model"] == "fake"
        assert (await classify(gateway, "cat,dog")).model == "clip"
        form = await gateway.client.post("/classify", **sent_as("form", {"labels": "cat,dog"}))
        assert form.json()["model"] == "clip"
        embedded = await gateway.post("/embed", PNG, query={"model": "clip", "normalize": "true"})
        assert embedded.json()["dimensions"] == 24
        for query, status, words in (
            ({"labels": "a,b", "model": "fake"}, 400, "fake has classes of its own, so it takes no labels"),
            ({"labels": "a,b", "model": "embedder"}, 400, "embedder is served without a text tower, so"),
            ({"model": "clip"}, 400, "clip classifies by labels, as in labels=cat,dog"),
            ({"model": "embedder"}, 404, "embedder is served under /embed"),
            ({"template": "a {}"}, 400, "template is the text around the labels; send labels too"),
            ({"labels": "a", "model": "clip-text"}, 404, "clip-text works for another model"),
        ):  # fmt: skip
            assert_problem(await gateway.post("/classify", PNG, query=query), status, words)
            assert_problem(await gateway.client.post("/classify", **sent_as("form", query)), status, words)
        cards = {card["name"]: card for card in (await gateway.get("/models")).json()["models"]}
    assert [cards[name]["zero_shot"] for name in ("fake", "clip", "embedder", "clip-text")] == [
        False, True, False, False,
    ]  # fmt: skip
    assert cards["clip-text"]["task"] == "text"


async def test_a_server_with_this_model_alone_takes_labels_in_forms(clip_folder: Path) -> None:
    async with serving(loaded(clip_folder)) as gateway:
        form = await gateway.client.post("/classify", **sent_as("form", {"labels": "cat,dog"}))
        assert form.status_code == 200, form.text
        assert_problem(await gateway.client.post("/classify", **sent_as("form", {})), 404, "no model of task")
        assert_problem(await gateway.post("/classify", PNG), 404, "no model of task classify is served")


async def test_labels_need_a_model_with_a_text_tower() -> None:
    async with serving(FakeRunner(spec=InputSpec())) as gateway:
        response = await gateway.post("/classify", PNG, query={"labels": "a,b"})
        assert_problem(response, 400, "labels are for models with a text tower, and none is served")


async def test_text_with_too_many_tokens_is_refused_and_not_cut(clip_folder: Path) -> None:
    async with serving(loaded(clip_folder)) as gateway:
        response = await gateway.post("/classify", PNG, query={"labels": "cat," + "x" * 60})
        assert_problem(response, 400, "has 71 tokens, and clip-text takes at most 40; shorten the label")
        assert (await classify(gateway, "cat")).predictions[0].score == 1


async def test_clips_are_refused(clip_folder: Path) -> None:
    async with serving(loaded(clip_folder)) as gateway:
        response = await gateway.post(
            "/classify", clip(count=4), query={"labels": "a,b"}, content_type="video/mp4"
        )
        assert_problem(response, 415, "clip takes images; send one frame of the clip as an image")


async def test_plans_explanations_and_deadlines_work(clip_folder: Path) -> None:
    async with serving(loaded(clip_folder)) as gateway:
        cheap = await gateway.post(
            "/classify",
            PNG,
            query={"labels": "cat,dog", "explain": "true"},
            x_plan="evit:0.5",
            x_slo_ms="60000",
        )
        body = Classification.model_validate_json(cheap.content)
        assert body.compute.rung == "evit:0.5" and body.explain is not None
        assert cheap.headers["x-slo-met"] == "true"
        late = await gateway.post("/classify", PNG, query={"labels": "cat,dog"}, x_slo_ms="0.0001")
        assert_problem(late, 504, "deadline")
        assert gateway.counted("ok", task="classify") == 1
        assert gateway.metric("foveate_request_duration_seconds_count", model="clip", task="classify") == 1


async def test_broken_image_costs_the_texts_nothing(clip_folder: Path) -> None:
    runner = loaded(clip_folder)
    async with serving(runner) as gateway:
        response: httpx.Response = await gateway.post("/classify", PNG[:90], query={"labels": "cat,dog"})
        assert_problem(response, 422)
        assert (await classify(gateway, "cat,dog")).predictions


async def test_text_tower_of_a_worker_answers_a_gateway_without_models(clip_folder: Path) -> None:
    runner = loaded(clip_folder)
    local = LocalCluster([lambda: runner], Metrics())
    await local.start()
    worker = Worker(local, "worker")
    client = WorkerClient(LoopbackTransport(worker))
    remote = RemoteCluster([client], [worker.cards()], HostLoadMonitor())
    app = create_app(remote, Settings(cache_bytes=0), Metrics())
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as http:
        for _ in range(2):
            response = await http.post(
                "http://test/classify?labels=cat,dog", content=PNG, headers={"content-type": "image/png"}
            )
            assert response.status_code == 200, response.text
        refused = await http.post(
            f"http://test/classify?labels={'x' * 60}", content=PNG, headers={"content-type": "image/png"}
        )
        assert_problem(refused, 400, "shorten the label")
    await local.close()
    scores = {each["label"]: each["score"] for each in response.json()["predictions"]}
    own = expected(clip_folder, ["a photo of a cat", "a photo of a dog"])
    assert [scores["cat"], scores["dog"]] == pytest.approx(own.tolist(), abs=1e-4)
    assert sorted(seen(runner))[:2] == ["a photo of a cat", "a photo of a dog"]


def zero_shot(activation: Any = "softmax", scale: float = 100.0, bias: float = 0.0) -> ZeroShot:
    return ZeroShot("text", "0", "{}", scale, bias, activation)


def test_probabilities_of_large_logits_are_finite() -> None:
    rows = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    image = np.array([5e20, 0], np.float32)
    np.testing.assert_allclose(probabilities(image, rows, zero_shot(scale=1e4)), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        probabilities(image, rows, zero_shot("sigmoid", 1e4, -5)), [1, 1 / (1 + np.exp(5)), 0], atol=1e-6
    )
    assert probabilities(np.zeros(2, np.float32), rows, zero_shot()).tolist() == pytest.approx([1 / 3] * 3)
