"""The command as people run it: `foveate serve` with the shipped model, `predict` and `models`."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from foveate.core.profile import Profile
from foveate.models import zoo
from foveate.models.loading.machine import current_setting
from foveate.models.runners.describe import STANDARD_RUNGS
from foveate.models.zoo.heldout import heldout
from tests.e2e.serving import FOVEATE, PATIENCE_S, PLACES, Serving, environment, serving

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))
USUAL = 0.94
"""Top-1 of the shipped model, where no profile says it."""
SLACK = 0.06
"""A hundred scenes are a sample: one standard deviation of 94% of 104 is 2.3 points."""


@pytest.fixture(scope="module", params=PLACES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("served"), *PLACES[request.param]) as here:
        yield here


def foveate(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FOVEATE, *arguments],
        capture_output=True,
        text=True,
        env=environment(cache),
        timeout=PATIENCE_S,
        check=False,
    )


def ladder(served: Serving) -> dict[str, dict[str, Any]]:
    rungs = served.client.get("/models/vit-t/ladder").json()["ladder"]
    return {rung["rung"]: rung for rung in rungs}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("rung", ["full", "evit:0.5"])
@pytest.mark.parametrize("picture", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_named_rightly_at_the_price_the_ladder_tells(
    served: Serving, picture: Path, rung: str
) -> None:
    response = served.classify(picture.read_bytes(), {} if rung == "full" else {"x-plan": rung})
    assert response.status_code == 200, response.text
    answer, told = response.json(), ladder(served)
    compute, full = answer["compute"], told["full"]
    assert answer["model"] == "vit-t"
    assert compute["plan"] == response.headers["x-foveate-plan"]
    assert compute["rung"] == rung
    assert compute["degraded"] is False
    measured = told.get(rung, {"plan": f"vit-t@224/{rung}/fp32", "quality": None})
    for field in measured.keys() & compute.keys():
        assert compute[field] == measured[field]
    assert compute["tokens_full"] == full["tokens"]
    for field in ("tokens", "gflops"):
        assert (compute[field] == full[field]) == (rung == "full")
    assert compute["exit_layer"] == zoo.card("vit-t").config.depth
    scores = [prediction["score"] for prediction in answer["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["predictions"][0]["label"] == picture.stem


def test_the_ladder_is_the_measured_one_cheapest_first(served: Serving) -> None:
    told = served.client.get("/models/vit-t/ladder").json()["ladder"]
    shipped = zoo.profile("vit-t")
    if shipped is None:
        assert {rung["rung"]: rung["quality"] for rung in told} == {"full": 1.0} | dict.fromkeys(
            STANDARD_RUNGS
        )
        assert [rung["gflops"] for rung in told] == sorted(rung["gflops"] for rung in told)
    else:
        ladder = profile_served(shipped).ladder
        assert [(rung["rung"], rung["quality"]) for rung in told] == [(m.plan, m.quality) for m in ladder]
        assert [rung["gflops"] for rung in told] == [round(m.gflops, 4) for m in ladder]
    assert told[-1]["rung"] == "full"


def profile_served(shipped: Profile) -> Profile:
    """The shipped profile as far as it holds in a server of one thread."""
    here = current_setting("cpu", "fp32")
    return shipped.latency_on(replace(here, threads=1))


def test_held_out_scenes_are_named_about_as_well_as_the_profile_says(served: Serving) -> None:
    scenes, card = heldout(), zoo.card("vit-t")
    assert scenes.labels == card.labels
    right = 0
    for data, target in zip(scenes.jpegs[:104], scenes.targets[:104].tolist(), strict=True):
        answer = served.classify(data).json()
        right += answer["predictions"][0]["index"] == target
    shipped = zoo.profile("vit-t")
    told = shipped.full.accuracy if shipped else None
    assert right / 104 >= (USUAL if told is None else told) - SLACK


def test_bad_input_is_refused_and_the_server_goes_on(served: Serving) -> None:
    data = EXAMPLES[0].read_bytes()
    assert served.classify(data[: len(data) // 2]).status_code == 422
    assert served.classify(data, {"x-plan": "warp:9"}).status_code == 400
    assert served.classify(data, {"x-plan": "evit:0.5/depth:99"}).status_code == 400
    assert served.classify(data, {"x-plan": "vit-t@160/fp32"}).status_code == 200
    assert served.classify(data, {"x-plan": "full/bf16"}).status_code == 400
    assert served.classify(data).status_code == 200


def test_what_was_served_is_in_the_metrics(served: Serving) -> None:
    assert served.classify(EXAMPLES[0].read_bytes()).status_code == 200
    until = time.monotonic() + PATIENCE_S

    def sample(start: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    # Workers on Ray tell what they have counted once a second.
    while not sample("foveate_batch_size_count") or sample("foveate_running{"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert sample('foveate_requests_total{model="vit-t",outcome="ok"') >= 1
    assert sample("foveate_waiting{") == 0


def test_the_log_has_no_traceback(served: Serving) -> None:
    """Runs after the tests above, whose bad input belongs in no log."""
    assert "Traceback" not in served.log.text


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_ends_it_with_exit_code_0(tmp_path: Path, place: str) -> None:
    with serving(tmp_path, "--plan", "evit:0.5", *PLACES[place]) as here:
        answer = here.classify(EXAMPLES[0].read_bytes()).json()
        assert answer["compute"]["rung"] == "evit:0.5"
        assert answer["compute"]["degraded"] is True
        here.process.send_signal(signal.SIGTERM)
        assert here.process.wait(PATIENCE_S) == 0
        with pytest.raises(httpx.ConnectError):
            here.client.get("/livez")
        assert "Traceback" not in here.log.text


def test_predict_prints_json_and_nothing_else(tmp_path: Path) -> None:
    fox = next(path for path in EXAMPLES if path.stem == "fox")
    done = foveate(tmp_path, "predict", str(fox), "--json", "--precision", "fp32", "--plan", "evit:0.7")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["predictions"][0]["label"] == "fox"
    assert answer["plan"] == "vit-t@224/evit:0.7/fp32"
    assert answer["tokens"] < answer["tokens_full"]
    assert "Traceback" not in done.stderr


def test_predict_shows_people_what_it_saw(tmp_path: Path) -> None:
    fox = next(path for path in EXAMPLES if path.stem == "fox")
    done = foveate(tmp_path, "predict", str(fox), "--precision", "fp32", "--plan", "evit:0.5")
    assert done.returncode == 0, done.stderr
    assert "fox" in done.stdout
    assert "vit-t@224/evit:0.5/fp32" in done.stdout
    assert re.search(r"patches at the end: \d+ kept, \d+ merged, 0 dropped", done.stdout)


def test_predict_draws_what_it_saw_and_the_server_tells_it(served: Serving, tmp_path: Path) -> None:
    drawn, fox = tmp_path / "seen.png", EXAMPLES[[path.stem for path in EXAMPLES].index("fox")]
    flags = ("--precision", "fp32", "--plan", "evit:0.5", "--explain", str(drawn))
    done = foveate(tmp_path, "predict", str(fox), *flags)
    assert done.returncode == 0, done.stderr
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"
        assert picture.width > 4 * picture.height / 2, "the input and three stages side by side"
    params, headers = {"explain": "true"}, {"content-type": "image/jpeg", "x-plan": "evit:0.5"}
    answer = served.client.post("/classify", content=fox.read_bytes(), params=params, headers=headers).json()
    told = answer["explain"]
    assert (told["grid"], told["exit_layer"]) == ([14, 14], answer["compute"]["exit_layer"])
    assert [stage["block"] for stage in told["stages"]] == [4, 7, 10]
    assert told["stages"][-1]["tokens"] == answer["compute"]["tokens"]
    assert all(len(stage["patches"]) == 196 for stage in told["stages"])


def test_the_content_of_a_picture_picks_its_rung(served: Serving, tmp_path: Path) -> None:
    fox = EXAMPLES[[path.stem for path in EXAMPLES].index("fox")]
    headers = {"content-type": "image/jpeg", "x-plan": "content:0.9"}
    params = {"explain": "true"}
    answer = served.client.post("/classify", content=fox.read_bytes(), params=params, headers=headers).json()
    rung = answer["compute"]["chosen"]
    alone = served.client.post(
        "/classify", content=fox.read_bytes(), params=params, headers=headers | {"x-plan": rung}
    ).json()
    assert answer["predictions"][0]["label"] == alone["predictions"][0]["label"] == "fox"
    assert answer["explain"]["grid"] == alone["explain"]["grid"]
    assert (answer["compute"]["plan"], alone["compute"]["chosen"]) == ("vit-t@224/content:0.9/fp32", None)
    done = foveate(tmp_path, "predict", str(fox), "--precision", "fp32", "--plan", "content:0.9")
    assert done.returncode == 0, done.stderr
    assert f"plan    vit-t@224/content:0.9/fp32, which chose {rung}" in done.stdout


def test_models_lists_what_is_shipped(tmp_path: Path) -> None:
    done = foveate(tmp_path, "models")
    assert done.returncode == 0, done.stderr
    for name in zoo.names():
        assert name in done.stdout
    assert "Traceback" not in done.stderr


FOX = str(next((path for path in EXAMPLES if path.stem == "fox"), "fox.jpg"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "no-such.jpg"], "no-such.jpg"),
        (["predict", __file__], "not a picture"),
        (["predict", FOX, "--model", "no_such_model"], "timm"),
        (["predict", FOX, "--model", "no-such.safetensors"], "no-such.safetensors"),
        (["predict", FOX, "--model", "weights.pt"], ".safetensors"),
        (["predict", FOX, "--plan", "warp:9"], "warp"),
        (["predict", FOX, "--plan", "evit:7"], "evit:0.7"),
        (["predict", FOX, "--device", "abacus"], "abacus"),
        (["predict", FOX, "--precision", "fp8"], "precision"),
        (["serve", "--plan", "warp:9"], "warp"),
        (["serve", "--model", "no-such.safetensors"], "no-such.safetensors"),
        (["serve", "--port", "99999"], "port"),
        (["predict", "no[/such].jpg"], "no[/such].jpg"),
        (["predict", "no[such].jpg"], "no[such].jpg"),
        (["predict", FOX, "--explain", "seen.jpg"], ".png"),
        (["predict", FOX, "--explain", "no-such-folder/seen.png"], "no-such-folder"),
    ],
    ids=lambda value: " ".join(Path(a).name for a in value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    defaults = {"--precision": "fp32"} | ({"--port": "0"} if arguments[0] == "serve" else {})
    missing = [word for pair in defaults.items() if pair[0] not in arguments for word in pair]
    done = foveate(tmp_path, *arguments, *missing)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("foveate: ")
    assert words in lines[0]
