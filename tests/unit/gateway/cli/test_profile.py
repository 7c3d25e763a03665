"""`foveate profile` in one process: options, progress bars, the printed ladder, and the resume hint."""

import json
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from foveate.core.errors import FoveateError
from foveate.core.profile import (
    DroppedFamily,
    Measurement,
    MeasurementEnvironment,
    PlanSearch,
    Profile,
    ProfilingSet,
)
from foveate.gateway.cli.profile import ProfileOptions, profile, progress_bars, resume_hint, show
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.own.runner import OwnRunner
from foveate.models.runners.image import TorchRunner
from tests.support.embedders import embedder
from tests.support.measuring import decode, tiny, unprofiled
from tests.support.own_models import TwoNetworks
from tests.support.question_sets import chat_model, write_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_resume_hint_names_the_partial_file(tmp_path: Path) -> None:
    options = ProfileOptions("mine", out=tmp_path / "p.json")
    assert resume_hint(options) == "interrupted; nothing was measured yet"
    (tmp_path / "p.json.partial").write_text("{}")
    assert f"the results so far are in {tmp_path / 'p.json.partial'}" in resume_hint(options)
    assert "the same command goes on" in resume_hint(options)


def test_options_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    for name in ("cat", "fish"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(decode(b"0")).save(folder / name / "0.png")
    cats = folder / "cat"
    model = unprofiled(TorchRunner(replace(tiny(), labels=("cat", "dog", "newt", "owl", "yak"))))
    for options, sentence in (
        (ProfileOptions("mine", data=folder), "fish stands for no class"),
        (ProfileOptions("mine", data=tmp_path / "nowhere"), "there is no folder"),
        (ProfileOptions("mine", data=cats, plans="warp:9"), "there is no token reducer 'warp'"),
        (
            ProfileOptions("mine", data=cats, plans="warp:9", diffrate="0.7"),
            "there is no token reducer 'warp'",
        ),
        (ProfileOptions("mine", data=cats, diffrate="0.7,x"), "shares of the full cost are numbers"),
        (ProfileOptions("mine", data=cats, diffrate="0.01"), "below .* of its full compute"),
        (ProfileOptions("mine", data=cats, budget="soon"), "a budget is a time such as 90s, 10m"),
        (ProfileOptions("mine", data=cats, batch_sizes="1,0"), "batch sizes are different numbers from 1"),
        (ProfileOptions("mine", data=cats, batch_sizes="4,x"), "batch sizes are different numbers from 1"),
        (ProfileOptions("mine", data=cats, batch_sizes="4,4"), "batch sizes are different numbers from 1"),
        (ProfileOptions("mine", data=cats, batch_sizes="1,99999999"), "numbers from 1 to 1024, as in 1,4,8"),
        (ProfileOptions("mine", data=cats, batch_sizes="9" * 5000), "numbers from 1 to 1024, as in 1,4,8"),
    ):
        with pytest.raises(FoveateError, match=sentence) as refused:
            profile(options, model, 10**6, Console(stderr=True))
        assert "\n" not in refused.value.detail


def test_what_was_dropped_is_shown_and_a_ladder_without_latencies_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    setting = MeasurementEnvironment("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
    full = Measurement("full", 1.0, 0.9, 1.0, 5, {}, rung=True)
    families = (
        DroppedFamily("tome", 12, "screening on 32 images", "another plan is better", "evit:0.5"),
        DroppedFamily("gtp:8", 1, "quality on all images", "the budget left no time for it", ""),
    )
    search = PlanSearch(40, 13, 60.0, False, families)
    data = ProfilingSet("animals", 9, labelled=True)
    show(Console(width=200), Profile("mine", "0", data, 0, setting, (full,), search=search), tmp_path / "p")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "nothing was timed, so the ladder goes by GFLOPs" in lines
    assert "40 plans tried, 13 dropped" in lines
    assert "tome 12 screening on 32 images another plan is better, as evit:0.5" in lines
    assert "gtp:8 1 quality on all images the budget left no time for it" in lines
    assert any(line.startswith("the budget left no time for some plans") for line in lines)


def test_embeddings_are_measured_on_the_images_of_a_folder(tmp_path: Path) -> None:
    model = UnprofiledModel(TorchRunner(embedder()), "abc")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.fromarray(decode(f"{ord(name)}{number}".encode()))
            image.save(tmp_path / "images" / name / f"{number}.png")
    for options, sentence in (
        (ProfileOptions("mine"), "embedder makes embeddings: pass --data DIR, a folder of images"),
        (ProfileOptions("mine", data=tmp_path, diffrate="0.7"), "no classes to search token schedules by"),
        (ProfileOptions("mine", data=tmp_path / "nowhere"), "there is no folder"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            profile(options, model, 10**6, Console(stderr=True))
    options = ProfileOptions("mine", tmp_path / "images", "evit:0.5", "1", rounds=1, out=tmp_path / "p.json")
    measured = profile(options, model, 10**6, Console(file=StringIO()))
    assert measured.data == ProfilingSet("images", 4, False)
    assert {m.plan for m in measured.measurements} == {"full", "evit:0.5"}


def test_the_progress_bars_use_no_thread() -> None:
    output, threads = StringIO(), threading.active_count()
    with progress_bars(Console(file=output, force_terminal=True, width=100)) as report:
        report("latency", "latency of 2 plans", 1, 4)
        assert threading.active_count() == threads
        assert "latency of 2 plans" in output.getvalue()
        report("latency", "all done", 4, 4)
    assert "all done" in output.getvalue(), "the last report is drawn at the end"


def test_without_matplotlib_the_ladder_is_printed_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    setting = MeasurementEnvironment("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
    full = Measurement("full", 1.0, 0.9, 1.0, 5, {1: 0.1, 8: 0.4}, rung=True)
    half = Measurement("evit:0.5", 0.98, 0.88, 0.6, 3, {1: 0.08, 8: 0.2}, rung=True)
    random = Measurement("random:0.5", 0.7, 0.63, 0.59, 3, {})
    compared = (half, full, random)
    measured = Profile("mine", "0", ProfilingSet("animals", 9, labelled=True), 0, setting, compared)
    show(Console(width=200), measured, tmp_path / "p.json")
    output = capsys.readouterr().out
    assert "pip install 'foveate[profile]'" in output
    assert [line.split() for line in output.splitlines()[1:4]] == [
        ["evit:0.5", "0.980", "88.0%", "0.600", "80.00", "200.00", "2.00x"],
        ["full", "1.000", "90.0%", "1.000", "100.00", "400.00", "1.00x"],
        ["random:0.5", "(baseline)", "0.700", "63.0%", "0.590"],
    ]
    assert not list(tmp_path.iterdir())


def test_an_own_model_gets_a_ladder_of_its_sizes_and_variants(tmp_path: Path) -> None:
    """The small network is a rung only where the measured time says so; no GFLOPs are made up."""
    for number in range(4):
        Image.fromarray(decode(bytes([48 + number]))).save(tmp_path / f"{number}.png")
    runner = OwnRunner(TwoNetworks(), prepare_in_run=True)
    options = ProfileOptions("own", data=tmp_path, rounds=1, batch_sizes="1,2", out=tmp_path / "own.json")
    console = Console(file=StringIO(), width=100)
    measured = profile(options, UnprofiledModel(runner, runner.digest), 10**6, console)
    assert {m.plan for m in measured.measurements} == {"full", "small@64", "small@32", "large@32"}
    assert all(m.gflops == 0 and m.latency_s for m in measured.measurements)
    assert not measured.data.labelled
    show(console, measured, options.target)
    assert Profile.read((tmp_path / "own.json").read_text(), "own.json") == measured
    assert set(runner.model.calls) >= {("small", 32), ("large", 64)}


def test_a_model_that_answers_questions_is_profiled_on_a_folder_of_them(tmp_path: Path) -> None:
    model, data, out = chat_model(tmp_path), write_folder(tmp_path / "data"), tmp_path / "chat.json"
    console = Console(file=StringIO(), width=200)
    options = ProfileOptions(
        "chat", data=data, plans="pool:4,random:4", rounds=1, batch_sizes="1,2", out=out, limit=2
    )
    for changes, sentence in (
        ({"batch_sizes": "8"}, "answers at most 4 questions at once, not 8"),
        ({"diffrate": "0.5"}, "has no token schedules: leave out --diffrate"),
        ({"plans": "warp:9"}, "there is no compression method 'warp'"),
        ({"data": tmp_path}, "there is no .jsonl file"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            profile(replace(options, **changes), model, 10**6, console)
    measured = profile(options, model, 10**6, console)
    assert {m.plan for m in measured.measurements} == {"full", "pool:4", "random:4"}
    assert measured.data.pictures == 2
    show(console, measured, out)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "worst kind" in output and "random:4 (baseline)" in output
    assert "up to the first tokens of the answers" in output


def test_a_kind_of_questions_is_printed_as_it_is(tmp_path: Path) -> None:
    model, data = chat_model(tmp_path), write_folder(tmp_path / "data")
    row = {"image": "0.png", "question": "what?", "kind": "a[/b] [red]\x1b[31m"}
    (data / "b\x1b.png").write_bytes(b"no picture")
    rows = [row, {"image": "b\x1b.png", "question": "what?"}]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ProfileOptions("chat", data, "full", "1", rounds=1, out=tmp_path / "chat.json")
    console = Console(file=StringIO(), width=200)
    show(console, profile(options, model, 10**6, console), options.target)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.000 (a[/b] [red]\\x1b[31m)" in output
    assert "as in b\\x1b.png: the data is not an image" in output
