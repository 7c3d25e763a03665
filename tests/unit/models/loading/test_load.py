"""From a name to a runner: which profile is found, what it must fit, and whom it brings along."""

import logging
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
from foveate.core.profile import Measurement, Profile, choose
from foveate.models import zoo
from foveate.models.loading import profile_store
from foveate.models.loading.load import ImageModelLoader, find_family_profile
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.machine import current_setting
from foveate.models.loading.profile_store import profile_path, weights_digest
from foveate.models.loading.registry import loader_for
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import write_atomically
from foveate.models.runners.describe import STANDARD_RUNGS
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.checkpoint import Checkpoint, save
from foveate.models.weights.family import save_stitches
from tests.support.measuring import FULL, GEOMETRY, album, job, plan, quiet, tiny, written

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def file(homes: Path) -> Path:
    save(homes / "tiny.safetensors", tiny())
    return homes / "tiny.safetensors"


def known(name: str, checkpoint: Checkpoint) -> Profile | None:
    return find_family_profile(name, checkpoint, current_setting("cpu", "fp32"))[0]


def profiled(file: Path) -> Profile:
    """Measure a file where `serve` will look for it."""
    loaded = ImageModelLoader().load_unprofiled(str(file), LoadOptions("fp32", "cpu", 1))
    return measure(loaded, album(), job(loaded.runner, rounds=1), profile_path(str(file)), quiet)


def test_a_loaded_models_ladder_is_the_profiles(file: Path) -> None:
    found = profiled(file)
    assert (file.parent / "tiny.profile.json").exists()
    card = ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1)).card
    assert [rung.plan.relative_to(card.full) for rung in card.ladder] == [m.plan for m in found.ladder]
    for rung, m in zip(card.ladder, found.ladder, strict=True):
        assert (rung.gflops, rung.tokens, rung.quality) == (m.gflops, m.tokens, m.quality)
        assert rung.latency_s == m.latency_s
        assert rung.latency_s


def test_in_another_setting_its_latencies_are_refused_with_a_sentence(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    profiled(file)
    card = ImageModelLoader().load(str(file), LoadOptions("bf16", "cpu", 1)).card
    (record,) = [r for r in caplog.records if r.name == profile_store.__name__]
    assert "in fp32, not" in record.getMessage()
    assert f"foveate profile {file}" in record.getMessage()
    assert all(rung.latency_s is None and rung.quality is not None for rung in card.ladder)


def test_a_profile_of_other_weights_is_ignored_with_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiled(file)
    save(file, tiny(seed=1))
    card = ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1)).card
    assert "is a profile of another model" in caplog.text
    assert card.ladder[0].quality is None


@pytest.mark.parametrize(
    ("junk", "sentence"),
    [
        (b"{", r"tiny\.profile\.json is not a readable profile: "),
        (b"\xff\xfe", r"cannot read the profile .*tiny\.profile\.json: "),
    ],
)
def test_an_unreadable_profile_stops_the_start(junk: bytes, sentence: str, file: Path) -> None:
    profile_path(str(file)).write_bytes(junk)
    with pytest.raises(SetupError, match=sentence):
        ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))


def test_a_profile_with_a_rung_that_cannot_be_run_stops_the_start(file: Path) -> None:
    found = profiled(file)
    path = profile_path(str(file))
    strange = Measurement("warp:9", 0.1, None, 0.0001, 1, dict.fromkeys((1, 3), 1e-9))
    path.write_text(replace(found, measurements=choose([*found.measurements, strange])).text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))


def test_a_model_that_is_no_file_has_its_profile_in_the_data_folder(homes: Path) -> None:
    path = profile_path("hf-hub:timm/vit")
    assert path == homes / "data/foveate/profiles/hf-hub-timm-vit.json"
    here, checkpoint = current_setting("cpu", "fp32"), tiny()
    assert known("hf-hub:timm/vit", checkpoint) is None
    found = replace(written(FULL, setting=here), weights=weights_digest(checkpoint))
    write_atomically(path, found.text())
    assert known("hf-hub:timm/vit", checkpoint) == found


def test_a_persons_own_profile_comes_before_the_shipped_one(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, checkpoint = current_setting("cpu", "fp32"), tiny()
    shipped = replace(written(FULL, setting=here), weights=weights_digest(checkpoint))
    write_atomically(homes / "zoo" / "tiny.profile.json", shipped.text())
    monkeypatch.setattr(zoo, "shipped", lambda: homes / "zoo")
    assert known("tiny", checkpoint) == shipped
    own = replace(shipped, seed=5)
    write_atomically(profile_path("tiny"), own.text())
    assert known("tiny", checkpoint) == own
    # A folder that cannot be entered holds none.
    (homes / "file").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(homes / "file"))
    assert known("tiny", checkpoint) == shipped


def test_the_digest_is_of_names_shapes_and_values() -> None:
    same, other, renamed = tiny(), tiny(seed=1), tiny()
    assert weights_digest(same) == weights_digest(renamed)
    assert weights_digest(same) != weights_digest(other)
    head = nn.Linear(2, 2)
    same.model.exit_heads["1"], renamed.model.exit_heads["2"] = head, head
    assert weights_digest(same) != weights_digest(renamed)


# Siblings.


@pytest.fixture
def pair(homes: Path) -> Path:
    """A model's file with a lighter one, and a stitch between them, beside it."""
    save(homes / "tiny.safetensors", tiny())
    save(homes / "tinier.safetensors", lighter())
    torch.manual_seed(0)
    joints = {StitchSpec("tiny", 2, "tinier", 1): nn.Linear(8, GEOMETRY.width)}
    save_stitches(homes / "tiny.stitches.safetensors", joints)
    return homes / "tiny.safetensors"


def lighter(seed: int = 1) -> Checkpoint:
    return tiny(seed, replace(GEOMETRY, width=8, depth=2, heads=1), "tinier")


def with_sibling(pair: Path) -> Profile:
    """A profile by hand whose rungs are a sibling's plan and a stitch."""
    weights, other = weights_digest(tiny()), weights_digest(lighter())
    rungs = [plan("tinier@64", 0.5, 0.1), plan("stitch:2", 0.8, 0.5), FULL]
    here = current_setting("cpu", "fp32")
    found = written(*(replace(m, rung=True) for m in rungs), setting=here)
    found = replace(found, weights=weights, siblings={"tinier": other})
    write_atomically(profile_path(str(pair)), found.text())
    return found


def answer(runner: TorchRunner, text: str) -> Result:
    chosen = Plan.parse(text, runner.full)
    (result,) = runner.run(runner.stack(album().at([0]), chosen), chosen)
    assert isinstance(result, Result)
    return result


def test_a_model_comes_with_the_siblings_and_stitches_of_its_profile(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sibling(pair)
    monkeypatch.chdir(pair.parents[1])  # siblings lie beside the model, wherever one stands
    runner = ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1))
    assert [rung.plan.relative_to(runner.full) for rung in runner.card.ladder] == [
        "tinier@64",
        "stitch:2",
        "full",
    ]
    assert runner.card.variants == {"tiny", "tinier"}
    alone = answer(TorchRunner(lighter()), "full")
    assert np.abs(answer(runner, "tinier@64").scores - alone.scores).max() < 1e-5
    assert alone.gflops < answer(runner, "stitch:2").gflops < answer(runner, "full").gflops


def test_without_a_profile_a_model_comes_alone(pair: Path) -> None:
    assert set(ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1)).models) == {"tiny"}


def test_a_profile_of_other_siblings_is_ignored_with_a_warning(
    pair: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_sibling(pair)
    save(pair.with_name("tinier.safetensors"), lighter(seed=2))
    runner = ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1))
    assert set(runner.models) == {"tiny"}
    assert runner.card.ladder[0].quality is None
    assert "is a profile of another model" in caplog.text


def test_measuring_takes_siblings_by_file_and_tells_their_digests(pair: Path) -> None:
    other = str(pair.with_name("tinier.safetensors"))
    found = ImageModelLoader().load_unprofiled(str(pair), LoadOptions("bf16", "cpu", 1), siblings=(other,))
    assert found.weights == weights_digest(tiny())
    assert found.siblings == {"tinier": weights_digest(lighter())}
    assert list(found.runner.models) == ["tiny", "tinier"]
    answer(found.runner, "stitch:2")


def test_a_sibling_of_the_same_name_is_refused(pair: Path) -> None:
    with pytest.raises(SetupError, match="two members of the family of tiny go by the same name"):
        ImageModelLoader().load_unprofiled(str(pair), LoadOptions("fp32", "cpu", 1), siblings=(str(pair),))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": tuple("abcde")}, "tinier cannot answer for tiny: their labels differ"),
        ({"mean": (0.1, 0.2, 0.3)}, "tinier cannot answer for tiny: their mean differ"),
    ],
)
def test_a_sibling_that_sees_or_names_otherwise_is_refused(
    change: dict[str, Any], sentence: str, pair: Path
) -> None:
    other = pair.with_name("tinier.safetensors")
    save(other, replace(lighter(), **change))
    with pytest.raises(SetupError, match=sentence):
        ImageModelLoader().load_unprofiled(str(pair), LoadOptions("fp32", "cpu", 1), siblings=(str(other),))


def test_a_profile_whose_sibling_is_gone_says_which(pair: Path) -> None:
    with_sibling(pair)
    pair.with_name("tinier.safetensors").unlink()
    with pytest.raises(SetupError, match="tinier"):
        ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1))


def test_content_and_schedules_come_from_the_profile(pair: Path) -> None:
    found = with_sibling(pair)
    content = ContentRungs(("tinier@64", "full"), ((1.0, 0.0, 0.0),), (0.0,))
    schedule = ((17, 15), (15, 13), (13, 11), (11, 9))
    found = replace(found, content=content, schedules={"0.5": schedule})
    profile_path(str(pair)).write_text(found.text())
    runner = ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1))
    assert runner.content == content
    assert answer(runner, "content:0.9").chosen in (runner.full, Plan.parse("tinier@64", runner.full))
    assert runner.models["tiny"].schedules == {"0.5": schedule}


def test_a_content_rung_that_cannot_be_run_stops_the_start(pair: Path) -> None:
    content = ContentRungs(("warp:9", "full"), ((1.0, 0.0, 0.0),), (0.0,))
    found = replace(with_sibling(pair), content=content)
    profile_path(str(pair)).write_text(found.text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(pair), LoadOptions("fp32", "cpu", 1))


def test_shipped_models_load_with_their_profile_or_the_standard_ladder(homes: Path) -> None:
    for name in zoo.names():
        shipped, runner = zoo.profile(name), loader_for(name).load(name, LoadOptions("fp32", "cpu", 1))
        texts = [rung.plan.relative_to(runner.full) for rung in runner.card.ladder]
        wanted = [*STANDARD_RUNGS, "full"]
        if shipped is not None:
            wanted = [m.plan for m in shipped.latency_on(current_setting("cpu", "fp32")).ladder]
            members = set(getattr(runner, "models", {name}))
            assert (shipped.model, set(shipped.siblings)) == (name, members - {name})
        assert texts == wanted
