"""Segmentation checkpoints of transformers: answers as transformers gives them, cheaper plans, refusals."""

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.models import huggingface
from foveate.models.huggingface import PretrainedRunner
from foveate.models.huggingface.cost import count, skeleton
from foveate.models.huggingface.segmenters import scores_of
from foveate.models.loading import precision
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.profile_store import profile_path
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.evaluation import mask_from_maps
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob
from tests.support import pretrained
from tests.support.pretrained import LABELS, RANGE, SIDE, SQUARE, Make, saved, settled, transformers

pytestmark = pytest.mark.usefixtures("one_thread")

TESTED = {
    "segformer": pretrained.segformer,
    "mask2former": pretrained.mask2former,
    "upernet": pretrained.upernet,
    "upernet_swin": pretrained.upernet_swin,
    "dpt": pretrained.dpt,
}
OTHERS = {"beit": pretrained.beit, "mobilevit": pretrained.mobilevit, "maskformer": pretrained.maskformer}
every_tested = pytest.mark.parametrize("make", TESTED.values(), ids=TESTED)
every = pytest.mark.parametrize("make", (TESTED | OTHERS).values(), ids=TESTED | OTHERS)


def picture(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def runner(path: Path, **options: Any) -> PretrainedRunner:
    return huggingface.runner(huggingface.load(str(path)), **options)


def answers(one: PretrainedRunner, text: str, media: list[NDArray[np.uint8]]) -> list[Result]:
    plan = one.card.plan(text)
    one.check(plan)
    found = one.run(one.stack(media, plan), plan)
    assert all(isinstance(result, Result) for result in found)
    return [result for result in found if isinstance(result, Result)]


def normalised(media: list[NDArray[np.uint8]], table: Mapping[str, Any]) -> Tensor:
    """Pixels as the checkpoint's table says, written down once more."""
    pixels = torch.from_numpy(np.stack(media)).permute(0, 3, 1, 2).double() * table["rescale_factor"]
    mean, std = (torch.tensor(table[key]).view(1, 3, 1, 1).double() for key in ("image_mean", "image_std"))
    found: Tensor = (pixels - mean) / std
    return found.float()


@torch.no_grad()
def theirs(path: Path, make: Make, pixels: Tensor) -> Any:
    """transformers' own output."""
    return type(make()).from_pretrained(path).eval()(pixels)


def dense(result: Result, classes: int = len(LABELS)) -> NDArray[np.float32]:
    """The scores of the classes that are somewhere the best, minus infinity for others: (C + 1, h, w)."""
    assert result.maps is not None
    whole = np.full((classes + 1, *result.maps.scores.shape[1:]), -np.inf, np.float32)
    whole[list(result.maps.classes)] = result.maps.scores
    return whole


@every
def test_full_answers_as_transformers_does(make: Make, tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", make()), [picture(1), picture(2)]
    expected = scores_of(theirs(path, make, normalised(media, RANGE | SQUARE))).numpy()
    found = answers(runner(path), "full", media)
    for result, scores in zip(found, expected, strict=True):
        named = dense(result)[1:]
        assert result.maps is not None
        assert named.shape == scores.shape
        present = [index - 1 for index in result.maps.classes]
        assert present == np.unique(scores.argmax(0)).tolist()
        assert np.abs(named[present] - scores[present]).max() < 2e-3 * max(1, np.abs(scores).max())
        shares = np.bincount(scores.argmax(0).ravel(), minlength=len(LABELS)) / scores[0].size
        assert np.allclose(result.scores, [0, *shares], atol=1e-6)


def test_the_pixels_are_to_float_error_what_transformers_own_preprocessor_makes(tmp_path: Path) -> None:
    processor = transformers.SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    path = saved(tmp_path / "m", pretrained.segformer())
    (path / "preprocessor_config.json").unlink()
    processor.save_pretrained(path)
    one, media = runner(path), [picture(1), picture(2)]
    expected = torch.as_tensor(np.stack(processor(media)["pixel_values"]))
    assert (one.sized(one.stack(media, one.full), SIDE) - expected).abs().max() < 1e-5
    assert one.card.input is not None
    assert one.card.input.interpolation == "bilinear"


def test_masks_of_mask2former_are_those_of_transformers_own_post_processing(tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", pretrained.mask2former()), [picture(n) for n in range(4)]
    out = theirs(path, pretrained.mask2former, normalised(media, RANGE | SQUARE))
    size = out.masks_queries_logits.shape[-2:]
    processor = transformers.Mask2FormerImageProcessorPil()
    expected = processor.post_process_semantic_segmentation(out, target_sizes=[size] * len(media))
    for result, mask in zip(answers(runner(path), "full", media), expected, strict=True):
        assert result.maps is not None
        # Theirs go to 384 x 384 and back on the way, which moves some borders.
        agreed = (mask_from_maps(result.maps, size) == mask.numpy() + 1).mean()
        assert agreed > 0.95
        assert len(result.maps.classes) > 1


@every
def test_rows_of_a_batch_do_not_influence_each_other(make: Make, tmp_path: Path) -> None:
    one = runner(saved(tmp_path / "m", make()))
    media = [picture(n) for n in range(3)]
    for plan in one.candidates():
        for result, medium in zip(answers(one, str(plan), media), media, strict=True):
            (alone,) = answers(one, str(plan), [medium])
            assert np.abs(result.scores - alone.scores).max() < 2e-3
            assert (dense(result).argmax(0) == dense(alone).argmax(0)).mean() > 0.99
    seen, black = answers(one, "full", [picture(9), np.zeros_like(media[0])])
    assert not np.array_equal(dense(seen), dense(black))


@every_tested
def test_a_smaller_size_answers_as_transformers_does_on_smaller_pictures(make: Make, tmp_path: Path) -> None:
    path, small = saved(tmp_path / "m", make()), [picture(3, 64)]
    one = runner(path)
    expected = scores_of(theirs(path, make, normalised(small, RANGE | SQUARE)))[0].numpy()
    (result,) = answers(one, f"{one.card.name}@64", small)
    named, best = dense(result)[1:], expected.argmax(0)
    assert (named.argmax(0) == best).mean() > 0.99
    (full,) = answers(one, "full", [picture(3)])
    assert result.gflops < 0.6 * full.gflops
    assert result.tokens < full.tokens
    (scaled,) = answers(one, f"{one.card.name}@64", [picture(3)])
    assert dense(scaled).shape == dense(result).shape


def test_a_capped_depth_runs_so_many_layers_of_the_pixel_decoder(tmp_path: Path) -> None:
    path, media = saved(tmp_path / "m", pretrained.mask2former()), [picture(1), picture(2)]
    one = runner(path)
    whole = type(pretrained.mask2former()).from_pretrained(path).eval()
    encoder, costs = whole.model.pixel_level_module.decoder.encoder, []
    layers = encoder.layers
    for depth in (3, 2, 1):
        encoder.layers = layers[:depth]
        with torch.no_grad():
            expected = scores_of(whole(normalised(media, RANGE | SQUARE))).numpy()
        for result, scores in zip(answers(one, f"depth:{depth}", media), expected, strict=True):
            present = np.unique(scores.argmax(0))
            assert np.abs(dense(result)[present + 1] - scores[present]).max() < 1e-2
            assert result.exit_layer == depth
        costs.append(result.gflops)
    full = answers(one, "full", media)
    assert costs[0] == full[0].gflops
    assert costs[0] - costs[1] == pytest.approx(costs[1] - costs[2])
    again = answers(runner(path), "full", media)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(full, again, strict=True))


def test_gflops_are_the_published_ones() -> None:
    """SegFormer-B0 on ADE20K, 512 x 512: 8.4 G."""
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150))
    empty = torch.empty(1, 3, 512, 512, device="meta")
    found, _ = count(skeleton(model), empty, lambda meta, pixels: meta(pixels))
    assert found == pytest.approx(8.4, rel=0.01)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_gflops_are_the_same_with_and_without_data(tmp_path: Path) -> None:
    for make in TESTED.values():
        one = runner(saved(tmp_path / make.__name__, make()))
        assert one._counted(one.full)[0] == pytest.approx(one.gflops(one.full))


def test_the_card_says_what_the_checkpoint_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "seg.former b0", pretrained.segformer())
    (path / "README.md").write_text(
        "---\ntags:\n- vision\nlicense: apache-2.0\n---\n# A model\nlicense: no\n"
    )
    card = runner(path).card
    assert (card.name, card.task, card.labels, card.frames) == ("seg.former-b0", "segment", LABELS, 0)
    assert (card.licence, card.full.image_size, len(card.ladder)) == ("apache-2.0", SIDE, 1)
    assert card.parameters == sum(p.numel() for p in pretrained.segformer().parameters())


def test_a_first_class_called_background_is_the_background(tmp_path: Path) -> None:
    names = dict(enumerate(("Background", *LABELS[1:])))
    model = pretrained.segformer(id2label=names, label2id={name: i for i, name in names.items()})
    with_background = runner(saved(tmp_path / "with", model))
    without = runner(saved(tmp_path / "without", pretrained.segformer()))
    assert with_background.card.labels == LABELS[1:]
    (shifted,), (plain,) = (answers(one, "full", [picture(1)]) for one in (with_background, without))
    assert shifted.maps is not None
    assert plain.maps is not None
    assert shifted.maps.classes == tuple(index - 1 for index in plain.maps.classes)
    assert np.array_equal(shifted.scores, plain.scores[1:])


def test_a_picture_without_finite_scores_fails_alone(tmp_path: Path) -> None:
    one = runner(saved(tmp_path / "m", pretrained.segformer()))
    white, media = np.full((SIDE, SIDE, 3), 255, np.uint8), [picture(1), picture(2)]

    def spoil(_: object, inputs: tuple[Tensor], output: Any) -> Any:
        gone = inputs[0].flatten(1).amin(1) > 1
        output["logits"] = output["logits"].masked_fill(gone[:, None, None, None], torch.nan)
        return output

    one.model.register_forward_hook(spoil)
    found = one.run(one.stack([media[0], white, media[1]], one.full), one.full)
    assert isinstance(found[1], RunFailed)
    fine = [result for result in (found[0], found[2]) if isinstance(result, Result)]
    expected = answers(one, "full", media)
    assert [np.abs(a.scores - b.scores).max() < 1e-3 for a, b in zip(fine, expected, strict=True)] == [
        True
    ] * 2


def test_half_precision_answers_much_the_same(tmp_path: Path) -> None:
    for make in TESTED.values():
        path = saved(tmp_path / make.__name__, make())
        (low,), (high,) = (answers(runner(path, precision=p), "full", [picture(1)]) for p in ("bf16", "fp32"))
        assert np.abs(low.scores - high.scores).sum() < 0.2


@every_tested
def test_plans_that_cannot_be_run_are_refused_in_a_sentence(make: Make, tmp_path: Path) -> None:
    one = runner(saved(tmp_path / "m", make()))
    full = one.full
    for wrong in (
        replace(full, variant="another"),
        replace(full, precision="bf16"),
        replace(full, image_size=50),
        replace(full, image_size=16),
        replace(full, image_size=2 * SIDE),
        replace(full, depth=99),
        replace(full, frames=4),
        replace(full, reducer="evit:0.5"),
        replace(full, exit="0.9"),
        replace(full, heads=1),
    ):
        with pytest.raises(BadPlan, match=r"^[^\n]+$"):
            one.check(wrong)
    if make is not pretrained.mask2former:
        with pytest.raises(BadPlan, match="an image size, not depth:1"):
            one.check(replace(full, depth=1))


def test_architectures_that_are_not_tested_run_in_full_alone(tmp_path: Path) -> None:
    for make in OTHERS.values():
        one = runner(saved(tmp_path / make.__name__, make()))
        assert one.candidates() == (one.full,)
        with pytest.raises(BadPlan, match="none but 96"):
            one.check(replace(one.full, image_size=64))


def test_candidates_are_full_and_cheaper_plans_that_run(tmp_path: Path) -> None:
    one = runner(saved(tmp_path / "m", pretrained.mask2former()))
    plans = [plan.relative_to(one.full) for plan in one.candidates()]
    assert plans == ["full", "depth:2", "depth:1", "m@64", "m@64/depth:1"]
    costs = [answers(one, str(plan), [picture(1)])[0].gflops for plan in one.candidates()]
    assert max(costs) == costs[0]


def broken(path: Path, file: str, **changes: Any) -> Path:
    """The checkpoint with another entry in one of its tables; None takes one out."""
    table = json.loads((path / file).read_text()) | changes
    (path / file).write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SetupError) as refused:
        runner(path)
    assert "\n" not in refused.value.detail
    return refused.value.detail


def test_a_checkpoint_that_cannot_be_served_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def one(name: str) -> Path:
        return saved(tmp_path / name, pretrained.segformer())

    assert "no config.json" in refusal(tmp_path)
    pickled = one("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(pretrained.segformer().state_dict(), pickled / "pytorch_model.bin")
    assert "no .safetensors" in refusal(pickled)
    torn = one("torn")
    (torn / "model.safetensors").write_bytes(b"not a tensor")
    assert "the weights of" in refusal(torn)
    config, pixels = "config.json", "preprocessor_config.json"
    unknown = broken(one("a"), config, model_type="nobody-knows")
    assert "is not one that transformers" in refusal(unknown)
    depth = broken(one("b"), config, architectures=["SegformerForImageClassification"])
    assert "SegFormer, Mask2Former, UperNet and DPT" in refusal(depth)
    assert "number its labels" in refusal(broken(one("c"), config, id2label={"0": "a", "2": "b"}))
    (one("d") / config).write_text("{")
    assert "configuration of" in refusal(tmp_path / "d")
    many = {str(index): f"class {index}" for index in range(256)}
    assert "256 classes" in refusal(broken(one("e"), config, id2label=many, label2id=None))
    assert "does not say how large" in refusal(broken(one("f"), pixels, size=None))
    assert "a size that is not served" in refusal(broken(one("g"), pixels, size={"height": "x", "width": 3}))
    assert "image_std" in refusal(broken(one("h"), pixels, image_std=[0, 1, 1]))
    assert "three numbers" in refusal(broken(one("i"), pixels, image_mean=[0.5]))
    assert "no factor" in refusal(broken(one("j"), pixels, rescale_factor="much"))
    (one("k") / pixels).unlink()
    assert "no preprocessor_config.json" in refusal(tmp_path / "k")
    (one("l") / pixels).write_text("[]")
    assert "is not a table" in refusal(tmp_path / "l")


def test_weights_that_answers_depend_on_must_be_there_and_others_need_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "dpt", pretrained.dpt())
    state = load_file(path / "model.safetensors")
    unused = [name for name in state if "fusion_stage.layers.0.residual_layer1" in name]
    assert unused
    save_file(
        {n: v for n, v in state.items() if n not in unused}, path / "model.safetensors", {"format": "pt"}
    )
    TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False)
    needed = {n: v for n, v in state.items() if not n.startswith("head.")}
    save_file(needed, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SetupError, match="gives no finite answer"):
        TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False)


def quiet(*told: object) -> None:
    """Watches and says nothing."""


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_profile_becomes_the_ladder_of_these_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = saved(tmp_path / "m", pretrained.segformer())
    loaded = TransformersLoader().load_unprofiled(f"hf:{path}", LoadOptions("fp32", "cpu", 1))
    seen = [picture(n) for n in range(6)]
    full = answers(loaded.runner, "full", seen)
    masks = tuple(png(mask_from_maps(result.maps, (SIDE, SIDE))) for result in full)
    album = DecodedDataset(
        Dataset("noise", tuple(map(png, seen)), None, masks),
        lambda data: np.asarray(Image.open(io.BytesIO(data))),
        quiet,
    )
    job = ProfilingJob(loaded.runner.candidates(), (1,), 1)
    found = measure(loaded, album, job, profile_path(str(path)), quiet)
    assert [m.plan for m in found.measurements if m.quality == 1][-1] == "full"
    assert all(m.quality < 1 for m in found.measurements if m.plan != "full")
    card = TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False).card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == [m.plan for m in found.ladder]
    assert all(rung.latency_s for rung in card.ladder)
    settled(pretrained.segformer(), seed=6).save_pretrained(path)
    other = TransformersLoader().load(str(path), LoadOptions("fp32", "cpu", 1), warm_ladder=False).card
    assert [(rung.quality, rung.latency_s) for rung in other.ladder] == [(1.0, None)]
    assert "is a profile of another model" in caplog.text
    with pytest.raises(SetupError, match="no other model answers in its name"):
        TransformersLoader().load_unprofiled(str(path), LoadOptions("fp32", "cpu", 1), siblings=("vit-xs",))


def test_the_precision_is_measured_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = huggingface.load(str(saved(tmp_path / "m", pretrained.segformer())))
    chosen = precision.choose(checkpoint, "cpu")
    (kept,) = (tmp_path / "cache/foveate/precision").iterdir()
    assert chosen == kept.read_text()
    assert next(checkpoint.model.parameters()).dtype == torch.float32


def test_names_of_transformers_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m", pretrained.segformer())
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "m", "./m", "nvidia/segformer-b0", "hf:m", "hf:nvidia/segformer-b0"):
        assert huggingface.named(name), name
    (tmp_path / "vit-t").mkdir()
    (tmp_path / "empty").mkdir()
    others = (
        "vit-t", "empty", "vit_tiny_patch16_224", "random:vit_tiny_patch16_224", "hf-hub:timm/vit_x",
        "timm/vit_tiny_patch16_224", "a/b.safetensors", "folder/model.pt",
    )  # fmt: skip
    for name in others:
        assert not huggingface.named(name), name


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'foveate[transformers]'" in refusal(tmp_path)


def test_a_name_that_the_hub_does_not_give_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SetupError, match=r"^the configuration of nobody/nothing cannot be had: [^\n]+$"):
        huggingface.load("nobody/nothing")
