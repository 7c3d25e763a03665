"""The runner of point prompts: results, refusals, its file, and serving it with its model."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.cluster.local import LocalCluster
from foveate.core.errors import BadPlan, RunFailed, SetupError
from foveate.core.metrics import Metrics
from foveate.core.outcome import Result
from foveate.core.point_prompts import MAX_POINTS, Features, Point, PointPrompt
from foveate.core.request import Request
from foveate.models.heads.point_prompts import (
    PointPromptHead,
)
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.profile_store import weights_digest
from foveate.models.runners.dense import dense_of, encode
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.point_prompts import CLICKS, ClickRunner, features_of, read_clicks, save_clicks
from foveate.models.weights.checkpoint import save
from tests.support.dense_heads import SMALL, SPEC, dense_checkpoint
from tests.support.measuring import tiny
from tests.support.point_prompt_heads import (
    POINT_ROWS,
    feature_maps,
    point_prompt_head,
    points,
    with_point_prompts,
)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
CENTRE = (Point(0.5, 0.5),)


def runner() -> TorchRunner:
    return TorchRunner(with_point_prompts())


def click_runner(of: TorchRunner | None = None) -> ClickRunner:
    here = of or runner()
    (actual,) = (one for one in here.submodels if one.card.name == here.card.click_model)
    assert isinstance(actual, ClickRunner)
    return actual


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("text", ["full", "evit:0.5", "tome:2", "depth:2", "tiny-seg@32"])
def test_model_with_a_click_head_returns_its_feature_maps(text: str) -> None:
    here = runner()
    plan, batch = here.card.plan(text), torch.from_numpy(random_images(3))
    model, images = here.models["tiny-seg"], here.preprocess(batch, plan.image_size)
    coarse, fine = dense_of(model).to_maps(
        encode(model, images, here.resolve(plan)).patches, dense_of(model).detail(images)
    )
    for row, result in enumerate(here.run(batch, plan)):
        assert isinstance(result, Result)
        assert result.features is not None
        assert result.features.fine.shape == (plan.image_size // 4, plan.image_size // 4, SPEC.fine)
        assert result.features.nbytes < 64 * 64 * 3 * 4, "it keeps the memory of this image alone"
        assert result.features.fine.base is None
        for kept, expected in ((result.features.coarse, coarse), (result.features.fine, fine)):
            assert kept.dtype == np.float16
            assert np.allclose(kept, expected[row].permute(1, 2, 0), atol=0.02)


def test_model_without_a_click_head_returns_no_features() -> None:
    here = TorchRunner(dense_checkpoint())
    (result,) = here.run(torch.from_numpy(random_images(1)), here.full)
    assert isinstance(result, Result)
    assert result.features is None
    assert (here.submodels, here.card.click_model) == ((), "")


def test_results_equal_the_head_itself() -> None:
    here, (coarse, fine) = click_runner(), feature_maps(3)
    kept = features_of(coarse, fine)
    media = [
        PointPrompt(features, tuple(Point(x, y, sign == 1) for x, y, sign in row))
        for features, row in zip(kept, POINT_ROWS, strict=True)
    ]
    expected = point_prompt_head()(coarse.half().float(), fine.half().float(), points(*POINT_ROWS))[:, 0]
    results = here.run(here.stack(media, here.full), here.full)
    for result, logits in zip(results, expected, strict=True):
        assert isinstance(result, Result)
        assert result.maps is not None
        share = float((logits > 0).float().mean())
        assert result.scores.tolist() == pytest.approx([1 - share, share], abs=0.01)
        if result.maps.classes == (0, 1):
            gap = result.maps.scores[1] - result.maps.scores[0]
            assert np.allclose(gap, logits, atol=0.02)
        assert result.gflops == here.card.ladder[-1].gflops == here.head.macs(4) / 1e9
    assert any(isinstance(r, Result) and 0 < r.scores[1] < 1 for r in results)


def test_card_of_the_click_model() -> None:
    here = runner()
    card = click_runner(here).card
    assert (here.card.click_model, here.card.task) == (card.name, "segment") == ("tiny-seg-clicks", "segment")
    assert (card.task, card.labels, card.input) == ("clicks", ("object",), None)
    assert [rung.plan for rung in card.ladder] == [card.full]


def test_features_of_another_size_need_a_plan_of_that_size() -> None:
    here = click_runner()
    plan = here.card.plan("tiny-seg-clicks@32")
    here.check(plan)
    (features,) = features_of(*feature_maps(1, 32))
    (result,) = here.run(here.stack([PointPrompt(features, CENTRE)], plan), plan)
    assert isinstance(result, Result)
    assert result.gflops < here.card.ladder[-1].gflops
    for text in ("tiny-seg-clicks@40", "other@64", "evit:0.5", "depth:1", "full/bf16"):
        with pytest.raises(BadPlan):
            here.check(here.card.plan(text) if "other" not in text else TorchRunner(tiny()).full)


def test_wrong_features_and_points_are_refused() -> None:
    here = click_runner()
    (small,), (fits,) = features_of(*feature_maps(1, 32)), features_of(*feature_maps(1))
    for medium in (
        PointPrompt(small, CENTRE),
        PointPrompt(fits, ()),
        PointPrompt(fits, CENTRE * (MAX_POINTS + 1)),
    ):
        with pytest.raises(RunFailed):
            here.stack([medium], here.full)


def test_item_with_features_that_are_not_finite_fails_alone() -> None:
    here = click_runner()
    (fits,) = features_of(*feature_maps(1))
    broken = Features(fits.coarse, np.full_like(fits.fine, np.inf))
    media = [PointPrompt(fits, CENTRE), PointPrompt(broken, CENTRE), PointPrompt(fits, CENTRE)]
    good, bad, fine = here.run(here.stack(media, here.full), here.full)
    assert isinstance(bad, RunFailed)
    assert isinstance(good, Result)
    assert isinstance(fine, Result)
    assert good.scores.tolist() == fine.scores.tolist()


def test_head_survives_a_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, model, head = tmp_path / CLICKS, dense_checkpoint(), point_prompt_head()
    save_clicks(path, head, "these")
    actual = read_clicks(path, model, "these")
    assert actual is not None
    assert actual.spec == head.spec
    for name, value in head.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value.half().float())
    assert read_clicks(path, model, "others") is None
    assert "is ignored" in caplog.text
    with pytest.raises(SetupError, match="has no dense head"):
        read_clicks(path, tiny(), "these")
    path.write_bytes(b"nothing")
    with pytest.raises(SetupError, match="not a readable click head"):
        read_clicks(path, model, "these")


def test_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    other = PointPromptHead(SPEC.__class__(5, width=10, fine=8), SMALL.patch_size, point_prompt_head().spec)
    save_clicks(tmp_path / CLICKS, other, "these")
    with pytest.raises(SetupError, match="not a readable click head"):
        read_clicks(tmp_path / CLICKS, dense_checkpoint(), "these")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a model with a click head in the same folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    model = dense_checkpoint()
    save(tmp_path / "tiny-seg.safetensors", model)
    save_clicks(tmp_path / f"tiny-seg.{CLICKS}", point_prompt_head(), weights_digest(model))
    return tmp_path / "tiny-seg.safetensors"


def test_loaded_model_has_a_warm_click_model(file: Path) -> None:
    actual = ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))
    answers = click_runner(actual)
    assert set(answers.times) == {1}, "one thread is best for so little"
    assert set(answers.times[1][answers.full]) == {1, 8}


def test_head_for_other_weights_is_ignored(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    save_clicks(file.parent / f"tiny-seg.{CLICKS}", point_prompt_head(), "another")
    actual = ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    assert actual.card.click_model == ""
    assert not any(isinstance(one, ClickRunner) for one in actual.submodels)
    assert "is ignored" in caplog.text


@pytest.mark.anyio
async def test_both_models_are_served_and_features_are_returned_on_request_alone() -> None:
    cluster = LocalCluster([runner], Metrics())
    assert {name: card.task for name, card in cluster.cards().items()} == {
        "tiny-seg": "segment",
        "tiny-seg-clicks": "clicks",
    }
    await cluster.start()
    try:
        (pixels,) = random_images(1)
        plain = await cluster.submit(Request("1", "tiny-seg", pixels, pixels.nbytes, task="segment"))
        assert plain.result.features is None
        request = Request("2", "tiny-seg", pixels, pixels.nbytes, task="segment", features=True)
        features = (await cluster.submit(request)).result.features
        assert features is not None
        medium = PointPrompt(features, CENTRE)
        clicked = Request("3", "tiny-seg-clicks", medium, medium.nbytes, task="clicks")
        outcome = await cluster.submit(clicked)
        assert outcome.result.maps is not None
        assert outcome.result.gflops < 1e-3
    finally:
        await cluster.close()
