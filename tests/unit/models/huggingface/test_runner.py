"""The runner of models of transformers: cost, precision and profiles."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.huggingface import PretrainedRunner
from foveate.models.loading import precision
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.profile_store import profile_path
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.evaluation import mask_from_maps
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob
from tests.support import pretrained
from tests.support.pretrained import (
    SIDE,
    load_runner,
    random_image,
    run_plan,
    saved,
    settled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


TESTED = {
    "segformer": pretrained.segformer,
    "mask2former": pretrained.mask2former,
    "upernet": pretrained.upernet,
    "upernet_swin": pretrained.upernet_swin,
    "dpt": pretrained.dpt,
}


def test_gflops_are_equal_with_and_without_data(tmp_path: Path) -> None:
    for make in TESTED.values():
        runner = load_runner(saved(tmp_path / make.__name__, make()))
        assert runner._count_on_device(runner.full)[0] == pytest.approx(runner.gflops(runner.full))


def test_half_precision_gives_similar_results(tmp_path: Path) -> None:
    for make in TESTED.values():
        path = saved(tmp_path / make.__name__, make())
        (low,), (high,) = (
            run_plan(load_runner(path, precision=p), "full", [random_image(1)]) for p in ("bf16", "fp32")
        )
        assert np.abs(low.scores - high.scores).sum() < 0.2


def quiet(*_: object) -> None:
    """Report nothing."""


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_profile_is_the_ladder_of_its_own_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = saved(tmp_path / "m", pretrained.segformer())
    loaded = TransformersLoader().load_unprofiled(f"hf:{path}", LoadOptions("fp32", "cpu", 1))
    assert isinstance(loaded.runner, PretrainedRunner)
    images = [random_image(n) for n in range(6)]
    full = run_plan(loaded.runner, "full", images)
    masks = tuple(png(mask_from_maps(result.maps, (SIDE, SIDE))) for result in full)
    dataset = DecodedDataset(
        Dataset("noise", tuple(map(png, images)), None, masks),
        lambda data: np.asarray(Image.open(io.BytesIO(data))),
        quiet,
    )
    job = ProfilingJob(loaded.runner.candidates(), (1,), 1)
    profile = measure(loaded, dataset, job, profile_path(str(path)), quiet)
    assert [m.plan for m in profile.measurements if m.quality == 1][-1] == "full"
    assert all(m.quality < 1 for m in profile.measurements if m.plan != "full")
    card = TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False).card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == [m.plan for m in profile.ladder]
    assert all(rung.latency_s for rung in card.ladder)
    settled(pretrained.segformer(), seed=6).save_pretrained(path)
    other = TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False).card
    assert [(rung.quality, rung.latency_s) for rung in other.ladder] == [(1.0, None)]
    assert "is a profile of another model" in caplog.text
    with pytest.raises(SetupError, match="no other model can answer in its name"):
        TransformersLoader().load_unprofiled(str(path), LoadOptions("fp32", "cpu", 1), siblings=("vit-xs",))


def test_precision_is_measured_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = huggingface.load(str(saved(tmp_path / "m", pretrained.segformer())))
    chosen = precision.choose(checkpoint, "cpu")
    (kept,) = (tmp_path / "cache/foveate/precision").iterdir()
    assert chosen == kept.read_text()
    assert next(checkpoint.model.parameters()).dtype == torch.float32
