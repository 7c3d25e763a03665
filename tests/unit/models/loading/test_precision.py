"""Choosing a precision: measured once, cached, and refused if it changes answers or is no faster."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.models.layers.config import ViTConfig
from foveate.models.loading import precision
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.zoo.heldout import HeldOut

CONFIG = ViTConfig(image_size=32, width=24, depth=2, heads=2, classes=10)
SCENES = 64


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def tiny(seed: int = 0) -> Checkpoint:
    """A random model that answers different images differently, with margins larger than rounding."""
    model, generator = ElasticViT(CONFIG).eval(), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return Checkpoint("tiny", CONFIG, model=model)


@torch.no_grad()
def close_classes() -> Checkpoint:
    """The same, but the scores of all classes differ less than bfloat16 can represent."""
    checkpoint = tiny()
    head = checkpoint.model.head
    assert isinstance(head, torch.nn.Linear)
    generator = torch.Generator().manual_seed(1)
    head.weight.copy_(head.weight[:1] + 1e-3 * torch.randn(head.weight.shape, generator=generator))
    head.bias.zero_()
    return checkpoint


def colours() -> HeldOut:
    """Images of one colour each, with noise."""
    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(SCENES):
        pixels = random.integers(0, 256, (1, 1, 3)) + random.integers(-60, 60, (32, 32, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    return HeldOut(tuple("abcdefghij"), tuple(jpegs), np.arange(SCENES) % 10)


class FixedTimes:
    """Replaces the timer: float32 takes one second, the lower precision 1 / gain seconds."""

    def __init__(self, gain: float) -> None:
        self.gain, self.measured = gain, 0

    def __call__(self, runner: TorchRunner) -> float:
        self.measured += 1
        return 1.0 if runner.full.precision == "fp32" else 1.0 / self.gain


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests use a cache of their own and few held-out images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "heldout", colours)


def timed(monkeypatch: pytest.MonkeyPatch, gain: float) -> FixedTimes:
    times = FixedTimes(gain)
    monkeypatch.setattr(precision, "seconds_per_batch", times)
    return times


def runners(checkpoint: Checkpoint) -> tuple[TorchRunner, TorchRunner]:
    return (
        TorchRunner(precision.copy_of(checkpoint), "fp32"),
        TorchRunner(precision.copy_of(checkpoint), "bf16"),
    )


def test_agreement_is_the_share_of_equal_classes() -> None:
    clear, close = runners(tiny()), runners(close_classes())
    assert precision.agreement(clear[0], clear[0], colours()) == 1.0
    assert precision.agreement(*clear, colours()) >= precision.AGREEMENT
    assert precision.agreement(*close, colours()) < 0.9
    assert precision.agreement(clear[0], runners(tiny(seed=1))[0], colours()) < 0.9


def test_the_test_model_predicts_several_classes() -> None:
    """Otherwise the test of the agreement would prove nothing."""
    reference, _ = runners(tiny())
    classes = precision.top1(reference, colours())
    assert classes.shape == (SCENES,)
    assert len(set(classes.tolist())) >= 3
    assert not np.array_equal(precision.top1(reference, colours(), "evit:0.3"), classes)


def test_a_faster_precision_that_keeps_the_answers_is_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed(monkeypatch, gain=2)
    caplog.set_level("INFO")
    assert precision.measure(tiny(), "cpu") == "bf16"
    assert "to check once whether bf16 keeps its answers takes about" in caplog.text


def test_a_precision_that_changes_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, gain=50)
    assert precision.measure(close_classes(), "cpu") == "fp32"


@pytest.mark.parametrize(("share", "chosen"), [(0.9949, "fp32"), (0.995, "bf16"), (1.0, "bf16")])
def test_half_a_percent_may_disagree(share: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, gain=2)
    monkeypatch.setattr(precision, "agreement", lambda *_: share)
    assert precision.measure(tiny(), "cpu") == chosen


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.14])
def test_a_precision_that_is_no_faster_is_refused_without_a_check(
    gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, gain)
    monkeypatch.setattr(precision, "heldout", lambda: pytest.fail("the scenes are not needed"))
    assert precision.measure(tiny(), "cpu") == "fp32"


def test_a_check_that_would_take_too_long_is_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed(monkeypatch, gain=2)
    monkeypatch.setattr(precision, "CHECK_LIMIT_S", 1.0)
    monkeypatch.setattr(precision, "agreement", lambda *_: pytest.fail("this would take too long"))
    assert precision.measure(tiny(), "cpu") == "fp32"
    assert "--precision bf16" in caplog.text


def test_the_choice_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = timed(monkeypatch, gain=2)
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert times.measured == 2
    (cache_file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "bf16" in cache_file.read_text()
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert times.measured == 2


def test_other_weights_have_their_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    times = timed(monkeypatch, gain=2)
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert precision.choose(close_classes(), "cpu") == "fp32"
    assert times.measured == 4
    assert precision.choose(close_classes(), "cpu") == "fp32"
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert times.measured == 4


def test_an_unwritable_cache_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    times = timed(monkeypatch, gain=2)
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert times.measured == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"precision": "int3"}'])
def test_a_damaged_cache_file_is_replaced(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed(monkeypatch, gain=2)
    precision.choose(tiny(), "cpu")
    (cache_file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    cache_file.write_text(text)
    assert precision.choose(tiny(), "cpu") == "bf16"
    assert "bf16" in cache_file.read_text()


def test_measuring_does_not_change_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, gain=2)
    checkpoint = tiny()
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    precision.choose(checkpoint, "cpu")
    for name, value in checkpoint.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_the_timer_gives_real_seconds() -> None:
    reference, candidate = runners(tiny())
    assert 0 < precision.seconds_per_batch(reference, repeats=1) < 10
    assert 0 < precision.seconds_per_batch(candidate, repeats=1) < 10


def test_without_a_home_folder_nothing_is_kept_and_the_precision_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "cache_folder", lambda: None)
    monkeypatch.setattr(precision, "measure", lambda *_: "fp32")
    with caplog.at_level("INFO"):
        assert precision.choose(tiny(), "cpu") == "fp32"
    assert "is not kept" in caplog.text


@torch.no_grad()
def embedder(seed: int = 0) -> Checkpoint:
    """The trunk of `tiny` without a classifier."""
    config = replace(CONFIG, classes=0)
    model, trained = ElasticViT(config).eval(), tiny(seed).model.state_dict()
    model.load_state_dict({name: trained[name] for name in model.state_dict()})
    return Checkpoint("embedder", config, model=model)


def test_embeddings_agree_where_their_cosine_similarity_is_high() -> None:
    reference, candidate = runners(embedder())
    assert precision.agreement(reference, reference, colours()) == 1.0
    similar = precision.cosines(
        precision.embeddings(reference, colours()), precision.embeddings(candidate, colours())
    )
    assert similar.shape == (SCENES,) and 0.99 < similar.min() < 1
    assert precision.agreement(reference, candidate, colours()) == (similar >= precision.SIMILARITY).mean()
    other, _ = runners(embedder(seed=1))
    assert precision.agreement(reference, other, colours()) < 0.5


def test_largest_feature_does_not_decide_for_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-1 of raw features would call these two the same."""
    reference, _ = runners(embedder())
    peak = np.eye(CONFIG.width, dtype=np.float32)[0]
    noise = 0.5 * np.random.default_rng(0).normal(size=CONFIG.width).astype(np.float32).clip(-1, 1)
    rows = iter([np.stack([2 * peak + noise] * SCENES), np.stack([2 * peak - noise] * SCENES)])
    monkeypatch.setattr(precision, "embeddings", lambda *_: next(rows))
    assert precision.agreement(reference, reference, colours()) == 0


def test_failed_embedding_agrees_with_nothing() -> None:
    row = np.array([[np.nan, np.nan]], np.float32)
    assert not (precision.cosines(row, np.ones((1, 2), np.float32)) >= precision.SIMILARITY).any()
    assert precision.cosines(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)).tolist() == [0]


def test_precision_of_an_embedding_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, gain=2)
    monkeypatch.setattr(precision, "SIMILARITY", 0.9)
    assert precision.measure(embedder(), "cpu") == "bf16"
    monkeypatch.setattr(precision, "SIMILARITY", 1.1)
    assert precision.measure(embedder(), "cpu") == "fp32"
