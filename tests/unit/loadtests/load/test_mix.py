"""What a run offers: classes, popularity, pictures, addresses."""

import io
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout
from loadtests.load.answers import Answer, foveate, parser
from loadtests.load.job import add_options, album, job, read_headers
from loadtests.load.mix import MOST_REQUESTS, Promise, draw, popularity, promises
from loadtests.load.pictures import catalogue, enlarged
from loadtests.load.target import request_bytes, request_head, target

MIX = {"fast": {"deadline_ms": 50, "weight": 3}, "good": {"deadline_ms": 900.5, "min_quality": 0.95}}


def options(*given: str) -> Namespace:
    reader = ArgumentParser()
    add_options(reader)
    return reader.parse_args(given)


def test_without_a_mix_there_is_one_class() -> None:
    assert promises("", 120.0) == {"all": Promise(deadline_ms=120)}


def test_a_mix_is_json_or_a_file_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(json.dumps(MIX))
    found = promises(json.dumps(MIX), 1)
    assert found == promises(str(tmp_path / "mix.json"), 1)
    assert found["good"] == Promise(deadline_ms=900.5, min_quality=0.95, weight=1)


@pytest.mark.parametrize(
    ("mix", "sentence"),
    [
        ("{", "the mix makes no sense at the text: Invalid JSON"),
        ('{"a": {}}', r"the mix makes no sense at a\.deadline_ms: Field required"),
        ('{"a": {"deadline_ms": 0}}', r"at a\.deadline_ms: Input should be greater than 0"),
        ('{"a": {"deadline_ms": 5, "colour": 1}}', r"at a\.colour: Extra"),
        ("{}", "the mix names no class"),
        ("nowhere.json", r"cannot read the mix nowhere\.json: No such file"),
    ],
)
def test_a_mix_that_makes_no_sense_is_told_of_in_a_sentence(mix: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        promises(mix, 100)


def test_a_class_tells_the_server_what_is_not_at_its_default() -> None:
    assert Promise(deadline_ms=200).headers("x-tenant") == {"x-slo-ms": "200"}
    full = Promise(deadline_ms=12.5, min_quality=0.9, priority=-2, tenant="a")
    assert full.headers("x-who") == {
        "x-slo-ms": "12.5",
        "x-min-quality": "0.9",
        "x-priority": "-2",
        "x-who": "a",
    }


def test_classes_are_drawn_by_weight_and_pictures_by_rank() -> None:
    drawn = draw(np.arange(20_000.0), [3, 1], 10, 1.0, seed=0)
    assert abs(np.mean(drawn.promise == 0) - 0.75) < 0.02
    counts = np.bincount(drawn.picture, minlength=10) / 20_000
    assert np.abs(counts - popularity(10, 1.0)).max() < 0.02
    again = draw(np.arange(20_000.0), [3, 1], 10, 1.0, seed=0)
    assert (again.picture == drawn.picture).all()
    assert (draw(np.arange(20_000.0), [3, 1], 10, 1.0, seed=1).picture != drawn.picture).any()


def test_zipf_makes_the_second_picture_half_as_likely_as_the_first() -> None:
    share = popularity(1000, 1.0)
    assert share[1] == pytest.approx(share[0] / 2)
    assert share.sum() == pytest.approx(1)
    assert popularity(4, 0.0).tolist() == [0.25] * 4


@pytest.mark.parametrize("count", [0, MOST_REQUESTS + 1])
def test_a_run_sends_something_and_not_too_much(count: int) -> None:
    with pytest.raises(SetupError, match=f"holds {count} requests"):
        draw(np.zeros(count), [1], 1, 0.0, 0)


def test_the_catalogue_is_of_held_out_scenes_with_their_labels() -> None:
    scenes, found = heldout(), catalogue("scene", 30, seed=3)
    assert len(found) == len(set(found.jpegs)) == 30
    for jpeg, label in zip(found.jpegs, found.labels, strict=True):
        assert scenes.labels[scenes.targets[scenes.jpegs.index(jpeg)]] == label
    assert catalogue("scene", 30, seed=3) == found
    assert catalogue("scene", 30, seed=4) != found
    assert len(catalogue("scene", 0, seed=0)) == len(scenes)
    with pytest.raises(SetupError, match="no catalogue of 1041"):
        catalogue("scene", 1041, 0)


def test_an_enlarged_scene_is_itself_in_the_middle() -> None:
    (jpeg,) = catalogue("scene", 1, 0).jpegs
    scene = Image.open(io.BytesIO(jpeg)).convert("RGB")
    large = Image.open(io.BytesIO(enlarged(jpeg)))
    assert (large.format, large.size) == ("JPEG", (640, 480))
    middle = large.crop((80, 0, 560, 480)).resize(scene.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(middle, int) - np.asarray(scene, int)).mean() < 4


def test_options_become_a_job() -> None:
    given = options(
        "--shape", "constant", "--seconds", "2", "--mix", json.dumps(MIX), "--headers", "X-Plan: full"
    )
    found = job(given, "http://localhost:81/base/", 10.0, album(options("--catalogue", "5")))
    assert found.target.url == "http://127.0.0.1:81/base/classify"
    assert found.target.headers == {"x-plan": "full"}
    assert (len(found.offers), found.span_s) == (20, 2.0)
    assert found.offers.picture.max() < 5


def test_a_trace_is_as_long_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("0.5\n1.5\n7\n")
    found = job(
        options("--shape", f"trace:{tmp_path / 'trace.csv'}"), "http://127.0.0.1", 1, album(options())
    )
    assert found.span_s == 7
    assert found.offers.at.tolist() == [0.5, 1.5, 7]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://8.8.8.8:80", r"8\.8\.8\.8 is another machine"),
        ("https://127.0.0.1", "is no address of a server"),
        ("127.0.0.1:8000", "is no address of a server"),
        ("http://127.0.0.1:http", "names no port"),
    ],
)
def test_only_this_machine_is_sent_to(url: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        target(url, "/classify", {})


def test_a_request_is_what_http_asks_for() -> None:
    aim = target("http://127.0.0.1:8000", "/classify", {"x-plan": "full"})
    head = request_head(aim, {"x-slo-ms": "200"})
    assert request_bytes(head, b"\xff\xd8!").split(b"\r\n") == [
        b"POST /classify HTTP/1.1", b"host: 127.0.0.1:8000", b"content-type: image/jpeg",
        b"cache-control: no-cache", b"x-slo-ms: 200", b"x-plan: full",
        b"content-length: 3", b"", b"\xff\xd8!",
    ]  # fmt: skip


def test_headers_are_read_or_refused() -> None:
    assert read_headers("") == {}
    assert read_headers("A: 1; b: x:y;") == {"a": "1", "b": "x:y"}
    with pytest.raises(SetupError, match="'nonsense' is no header"):
        read_headers("a: 1; nonsense")


def test_answers_are_read_with_as_much_as_they_say() -> None:
    assert foveate(b'{"predictions": [{"label": "fox"}]}') == Answer("fox")
    whole = foveate(
        b'{"predictions": [{"label": "fox"}, {"label": "cat"}], "compute": {"rung": "full", "quality": 1.0},'
        b'"timings_ms": {"queue": 2.5}}'
    )
    assert whole == Answer("fox", "full", 1.0, {"queue": 2.5})
    assert parser("loadtests.load.answers:foveate") is foveate
    with pytest.raises(SetupError, match=r"there is no parser 'no\.such:thing'"):
        parser("no.such:thing")
