"""Loading image models: the ladder of the profile, siblings, stitches, and the choice by content."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveate.core.content import ContentRungs
from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, mark_rungs
from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import build as build_exit
from foveate.models.loading.load import ImageModelLoader, fetch_untrained
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.machine import current_setting
from foveate.models.loading.profile_store import exits_path, profile_path, weights_digest
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import write_atomically
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.checkpoint import Checkpoint, save
from foveate.models.weights.family import save_stitches
from foveate.models.weights.trained_heads import TrainedHeads, save_heads
from tests.support.measuring import CONFIG, FULL, noise_images, plan, profiling_job, quiet, tiny, written

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = LoadOptions("fp32", "cpu", 1)


def measured_profile(weights_file: Path) -> Profile:
    """Measure a profile, and write it to where the loader looks for it."""
    loaded = ImageModelLoader().load_unprofiled(str(weights_file), OPTIONS)
    job = profiling_job(loaded.runner, rounds=1)
    return measure(loaded, noise_images(), job, profile_path(str(weights_file)), quiet)


def test_the_ladder_of_a_loaded_model_is_that_of_its_profile(weights_file: Path) -> None:
    saved = measured_profile(weights_file)
    assert (weights_file.parent / "tiny.profile.json").exists()
    card = ImageModelLoader().load(str(weights_file), OPTIONS).card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == [m.plan for m in saved.ladder]
    for rung, m in zip(card.ladder, saved.ladder, strict=True):
        assert (rung.gflops, rung.tokens, rung.quality) == (m.gflops, m.tokens, m.quality)
        assert rung.latency_s == m.latency_s
        assert rung.latency_s


def test_a_profile_with_a_rung_that_cannot_run_is_refused(weights_file: Path) -> None:
    saved = measured_profile(weights_file)
    path = profile_path(str(weights_file))
    strange = Measurement("warp:9", 0.1, None, 0.0001, 1, dict.fromkeys((1, 3), 1e-9))
    path.write_text(replace(saved, measurements=mark_rungs([*saved.measurements, strange])).text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(weights_file), OPTIONS)


# Exits that were trained for a checkpoint.


def trained_exits(weights_file: Path) -> Path:
    """Untrained heads, in the file that `foveate train-exits` writes for these weights."""
    spec = ExitSpec(2, "global", 2)
    torch.manual_seed(0)
    state = {f"exit_heads.2.{name}": v for name, v in build_exit(CONFIG, spec).state_dict().items()}
    path = exits_path(str(weights_file))
    save_heads(path, TrainedHeads((spec,), (), state), fetch_untrained(str(weights_file), OPTIONS)[1])
    return path


def test_serving_finds_the_exits_that_were_trained_for_the_weights(weights_file: Path) -> None:
    plain = ImageModelLoader().load(str(weights_file), OPTIONS)
    assert not any(plan.exit for plan in plain.candidates())
    path = trained_exits(weights_file)
    assert path == weights_file.with_name("tiny.exits.safetensors")
    runner = ImageModelLoader().load(str(weights_file), OPTIONS)
    assert answer(runner, "exit:0.0001").exit_layer == 2
    assert np.array_equal(answer(runner, "full").scores, answer(plain, "full").scores)
    assert any(
        plan.exit
        for plan in ImageModelLoader().load_unprofiled(str(weights_file), OPTIONS).runner.candidates()
    )
    assert ImageModelLoader().load(str(weights_file.parent), OPTIONS).card.name == "tiny", (
        "it is no weights file"
    )


def test_exits_of_a_changed_checkpoint_are_ignored_with_one_sentence(
    weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_exits(weights_file)
    save(weights_file, tiny(seed=5))
    runner = ImageModelLoader().load(str(weights_file), OPTIONS)
    assert not len(runner.models["tiny"].exit_heads)
    (record,) = [r for r in caplog.records if "exits" in r.getMessage()]
    assert (
        "was trained for other weights than tiny has, and is ignored: train it again" in record.getMessage()
    )


def test_exits_of_a_named_model_lie_in_the_users_data_folder(
    user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exits_path("vit_small_patch16_224")
    assert path.name == "vit_small_patch16_224.exits.safetensors"
    assert path.parent == profile_path("vit_small_patch16_224").parent


# Siblings.


@pytest.fixture
def pair(user_folders: Path) -> Path:
    """The weights file of a model, with a lighter model and a stitch in the same folder."""
    save(user_folders / "tiny.safetensors", tiny())
    save(user_folders / "tinier.safetensors", lighter())
    torch.manual_seed(0)
    joints = {StitchSpec("tiny", 2, "tinier", 1): nn.Linear(8, CONFIG.width)}
    save_stitches(user_folders / "tiny.stitches.safetensors", joints)
    return user_folders / "tiny.safetensors"


def lighter(seed: int = 1) -> Checkpoint:
    return tiny(seed, replace(CONFIG, width=8, depth=2, heads=1), "tinier")


def with_sibling(pair: Path) -> Profile:
    """Write a profile with a plan of the sibling and a stitch as rungs."""
    weights, other = weights_digest(tiny()), weights_digest(lighter())
    rungs = [plan("tinier@64", 0.5, 0.1), plan("stitch:2", 0.8, 0.5), FULL]
    here = current_setting("cpu", "fp32")
    saved = written(*(replace(m, rung=True) for m in rungs), setting=here)
    saved = replace(saved, weights=weights, siblings={"tinier": other})
    write_atomically(profile_path(str(pair)), saved.text())
    return saved


def answer(runner: TorchRunner, text: str) -> Result:
    chosen = Plan.parse(text, runner.full)
    (result,) = runner.run(runner.stack(noise_images().at([0]), chosen), chosen)
    assert isinstance(result, Result)
    return result


def test_a_model_is_loaded_with_the_siblings_and_stitches_of_its_profile(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sibling(pair)
    monkeypatch.chdir(pair.parents[1])  # siblings are in the folder of the model, not in the current folder
    runner = ImageModelLoader().load(str(pair), OPTIONS)
    assert [rung.plan.relative_to(runner.full) for rung in runner.card.ladder] == [
        "tinier@64",
        "stitch:2",
        "full",
    ]
    assert runner.card.variants == {"tiny", "tinier"}
    alone = answer(TorchRunner(lighter()), "full")
    assert np.abs(answer(runner, "tinier@64").scores - alone.scores).max() < 1e-5
    assert alone.gflops < answer(runner, "stitch:2").gflops < answer(runner, "full").gflops


def test_without_a_profile_a_model_has_no_siblings(pair: Path) -> None:
    assert set(ImageModelLoader().load(str(pair), OPTIONS).models) == {"tiny"}


def test_a_profile_of_other_siblings_is_ignored_with_a_warning(
    pair: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_sibling(pair)
    save(pair.with_name("tinier.safetensors"), lighter(seed=2))
    runner = ImageModelLoader().load(str(pair), OPTIONS)
    assert set(runner.models) == {"tiny"}
    assert runner.card.ladder[0].quality is None
    assert "is a profile of another model" in caplog.text


def test_siblings_to_measure_are_loaded_by_file_with_their_digests(pair: Path) -> None:
    sibling = str(pair.with_name("tinier.safetensors"))
    saved = ImageModelLoader().load_unprofiled(str(pair), LoadOptions("bf16", "cpu", 1), siblings=(sibling,))
    assert saved.weights == weights_digest(tiny())
    assert saved.siblings == {"tinier": weights_digest(lighter())}
    assert list(saved.runner.models) == ["tiny", "tinier"]
    answer(saved.runner, "stitch:2")


def test_a_sibling_of_the_same_name_is_refused(pair: Path) -> None:
    with pytest.raises(SetupError, match="two members of the family of tiny have the same name"):
        ImageModelLoader().load_unprofiled(str(pair), OPTIONS, siblings=(str(pair),))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": tuple("abcde")}, "tinier cannot answer for tiny: their labels differ"),
        ({"mean": (0.1, 0.2, 0.3)}, "tinier cannot answer for tiny: their mean differ"),
    ],
)
def test_a_sibling_with_other_labels_or_inputs_is_refused(
    change: dict[str, Any], sentence: str, pair: Path
) -> None:
    other = pair.with_name("tinier.safetensors")
    save(other, replace(lighter(), **change))
    with pytest.raises(SetupError, match=sentence):
        ImageModelLoader().load_unprofiled(str(pair), OPTIONS, siblings=(str(other),))


def test_a_missing_sibling_is_an_error_with_its_name(pair: Path) -> None:
    with_sibling(pair)
    pair.with_name("tinier.safetensors").unlink()
    with pytest.raises(SetupError, match="tinier"):
        ImageModelLoader().load(str(pair), OPTIONS)


def test_content_and_schedules_come_from_the_profile(pair: Path) -> None:
    saved = with_sibling(pair)
    content = ContentRungs(("tinier@64", "full"), ((1.0, 0.0, 0.0),), (0.0,))
    schedule = ((17, 15), (15, 13), (13, 11), (11, 9))
    saved = replace(saved, content=content, schedules={"0.5": schedule})
    profile_path(str(pair)).write_text(saved.text())
    runner = ImageModelLoader().load(str(pair), OPTIONS)
    assert runner.content == content
    assert answer(runner, "content:0.9").chosen in (runner.full, Plan.parse("tinier@64", runner.full))
    assert runner.models["tiny"].schedules == {"0.5": schedule}


def test_a_content_rung_that_cannot_run_is_refused(pair: Path) -> None:
    content = ContentRungs(("warp:9", "full"), ((1.0, 0.0, 0.0),), (0.0,))
    saved = replace(with_sibling(pair), content=content)
    profile_path(str(pair)).write_text(saved.text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(pair), OPTIONS)
