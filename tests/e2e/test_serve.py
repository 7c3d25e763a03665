"""The command line: `foveate serve` with a shipped elastic model, `foveate predict` and `foveate models`."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tests.e2e.serving import CLUSTERS, FOVEATE, TIMEOUT_S, ServerProcess, environment, serving

EXAMPLES = [
    Path(__file__).parents[2] / f"examples/drawn/{name}.jpg"
    for name in ("bicycle", "fox", "octopus", "teacup")
]
"""The drawn scenes among the examples."""
VIT_T = ("--model", "vit-t")
DEFAULT_ACCURACY = 0.94
"""Top-1 accuracy of the shipped model if no profile has it."""
TOLERANCE = 0.06
"""104 scenes are a sample: one standard deviation of an accuracy of 94% is 2.3 points."""


@pytest.fixture(scope="module", params=CLUSTERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("served"), *VIT_T, *CLUSTERS[request.param]) as server:
        yield server


def run_foveate(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FOVEATE, *arguments],
        capture_output=True,
        text=True,
        env=environment(cache),
        timeout=TIMEOUT_S,
        check=False,
    )


def ladder(served: ServerProcess) -> dict[str, dict[str, Any]]:
    """The ladder that the server reports, by rung name."""
    rungs = served.client.get("/models/vit-t/ladder").json()["ladder"]
    return {rung["rung"]: rung for rung in rungs}


@pytest.mark.parametrize("rung", ["full", "evit:0.5"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_get_the_right_class_at_the_cost_in_the_ladder(
    served: ServerProcess, example: Path, rung: str
) -> None:
    response = served.classify(example.read_bytes(), {} if rung == "full" else {"x-plan": rung})
    assert response.status_code == 200, response.text
    answer, rungs = response.json(), ladder(served)
    compute, full = answer["compute"], rungs["full"]
    assert answer["model"] == "vit-t"
    assert compute["plan"] == response.headers["x-foveate-plan"]
    assert compute["rung"] == rung
    assert compute["degraded"] is False
    measured = rungs.get(rung, {"plan": f"vit-t@224/{rung}/fp32", "quality": None})
    for field in measured.keys() & compute.keys():
        assert compute[field] == measured[field]
    assert compute["tokens_full"] == full["tokens"]
    for field in ("tokens", "gflops"):
        assert (compute[field] == full[field]) == (rung == "full")
    assert compute["exit_layer"] == zoo.card("vit-t").config.depth
    scores = [prediction["score"] for prediction in answer["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["predictions"][0]["label"] == example.stem


def test_ladder_is_the_measured_one_cheapest_first(served: ServerProcess) -> None:
    rungs = served.client.get("/models/vit-t/ladder").json()["ladder"]
    shipped = zoo.profile("vit-t")
    if shipped is None:
        assert {rung["rung"]: rung["quality"] for rung in rungs} == {"full": 1.0} | dict.fromkeys(
            STANDARD_RUNGS
        )
        assert [rung["gflops"] for rung in rungs] == sorted(rung["gflops"] for rung in rungs)
    else:
        ladder = profile_served(shipped).ladder
        assert [(rung["rung"], rung["quality"]) for rung in rungs] == [(m.plan, m.quality) for m in ladder]
        assert [rung["gflops"] for rung in rungs] == [round(m.gflops, 4) for m in ladder]
    assert rungs[-1]["rung"] == "full"


def profile_served(shipped: Profile) -> Profile:
    """The shipped profile, with latencies for a server with one thread."""
    environment_here = current_setting("cpu", "fp32")
    return shipped.latency_on(replace(environment_here, threads=1))


def test_accuracy_on_held_out_scenes_is_close_to_the_profile(served: ServerProcess) -> None:
    scenes, card = heldout(), zoo.card("vit-t")
    assert scenes.labels == card.labels
    correct = 0
    for data, target in zip(scenes.jpegs[:104], scenes.targets[:104].tolist(), strict=True):
        answer = served.classify(data).json()
        correct += answer["predictions"][0]["index"] == target
    shipped = zoo.profile("vit-t")
    measured = shipped.full.accuracy if shipped else None
    assert correct / 104 >= (DEFAULT_ACCURACY if measured is None else measured) - TOLERANCE


def test_server_continues_after_bad_input(served: ServerProcess) -> None:
    data = EXAMPLES[0].read_bytes()
    assert served.classify(data[: len(data) // 2]).status_code == 422
    assert served.classify(data, {"x-plan": "warp:9"}).status_code == 400
    assert served.classify(data, {"x-plan": "evit:0.5/depth:99"}).status_code == 400
    assert served.classify(data, {"x-plan": "vit-t@160/fp32"}).status_code == 200
    assert served.classify(data, {"x-plan": "full/bf16"}).status_code == 400
    assert served.classify(data).status_code == 200


def test_served_requests_are_in_the_metrics(served: ServerProcess) -> None:
    assert served.classify(EXAMPLES[0].read_bytes()).status_code == 200
    until = time.monotonic() + TIMEOUT_S

    def total(start: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    # Workers on Ray report their metrics once a second.
    while not total("foveate_batch_size_count") or total("foveate_running{"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert total('foveate_requests_total{model="vit-t",outcome="ok"') >= 1
    assert total("foveate_waiting{") == 0


def test_log_has_no_traceback(served: ServerProcess) -> None:
    """Runs after the tests above: bad input must not be logged as a server error."""
    assert "Traceback" not in served.log.text


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_sigterm_ends_the_server_with_exit_code_0(tmp_path: Path, cluster: str) -> None:
    with serving(tmp_path, *VIT_T, "--plan", "evit:0.5", *CLUSTERS[cluster]) as server:
        answer = server.classify(EXAMPLES[0].read_bytes()).json()
        assert answer["compute"]["rung"] == "evit:0.5"
        assert answer["compute"]["degraded"] is True
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 0
        with pytest.raises(httpx.ConnectError):
            server.client.get("/livez")
        assert "Traceback" not in server.log.text


def test_predict_json_prints_only_json(tmp_path: Path) -> None:
    fox = next(path for path in EXAMPLES if path.stem == "fox")
    done = run_foveate(
        tmp_path, "predict", str(fox), *VIT_T, "--json", "--precision", "fp32", "--plan", "evit:0.7"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["predictions"][0]["label"] == "fox"
    assert answer["plan"] == "vit-t@224/evit:0.7/fp32"
    assert answer["tokens"] < answer["tokens_full"]
    assert "Traceback" not in done.stderr


def test_predict_prints_a_readable_summary(tmp_path: Path) -> None:
    fox = next(path for path in EXAMPLES if path.stem == "fox")
    done = run_foveate(tmp_path, "predict", str(fox), *VIT_T, "--precision", "fp32", "--plan", "evit:0.5")
    assert done.returncode == 0, done.stderr
    assert "fox" in done.stdout
    assert "vit-t@224/evit:0.5/fp32" in done.stdout
    assert re.search(r"patches at the end: \d+ kept, \d+ merged, 0 dropped", done.stdout)


def test_predict_explain_draws_the_patches_that_the_server_reports(
    served: ServerProcess, tmp_path: Path
) -> None:
    drawing, fox = tmp_path / "patches.png", EXAMPLES[[path.stem for path in EXAMPLES].index("fox")]
    flags = ("--precision", "fp32", "--plan", "evit:0.5", "--explain", str(drawing))
    done = run_foveate(tmp_path, "predict", str(fox), *VIT_T, *flags)
    assert done.returncode == 0, done.stderr
    with Image.open(drawing) as image:
        assert image.format == "PNG"
        assert image.width > 4 * image.height / 2, "the input and three stages side by side"
    params, headers = {"explain": "true"}, {"content-type": "image/jpeg", "x-plan": "evit:0.5"}
    answer = served.client.post("/classify", content=fox.read_bytes(), params=params, headers=headers).json()
    explanation = answer["explain"]
    assert (explanation["grid"], explanation["exit_layer"]) == ([14, 14], answer["compute"]["exit_layer"])
    assert [stage["block"] for stage in explanation["stages"]] == [4, 7, 10]
    assert explanation["stages"][-1]["tokens"] == answer["compute"]["tokens"]
    assert all(len(stage["patches"]) == 196 for stage in explanation["stages"])


def test_content_plan_chooses_the_rung_by_the_image(served: ServerProcess, tmp_path: Path) -> None:
    fox = EXAMPLES[[path.stem for path in EXAMPLES].index("fox")]
    headers = {"content-type": "image/jpeg", "x-plan": "content:0.9"}
    params = {"explain": "true"}
    answer = served.client.post("/classify", content=fox.read_bytes(), params=params, headers=headers).json()
    rung = answer["compute"]["chosen"]
    pinned = served.client.post(
        "/classify", content=fox.read_bytes(), params=params, headers=headers | {"x-plan": rung}
    ).json()
    assert answer["predictions"][0]["label"] == pinned["predictions"][0]["label"] == "fox"
    assert answer["explain"]["grid"] == pinned["explain"]["grid"]
    assert (answer["compute"]["plan"], pinned["compute"]["chosen"]) == ("vit-t@224/content:0.9/fp32", None)
    done = run_foveate(tmp_path, "predict", str(fox), *VIT_T, "--precision", "fp32", "--plan", "content:0.9")
    assert done.returncode == 0, done.stderr
    assert f"plan    vit-t@224/content:0.9/fp32, which chose {rung}" in done.stdout


def test_models_lists_the_shipped_models(tmp_path: Path) -> None:
    done = run_foveate(tmp_path, "models")
    assert done.returncode == 0, done.stderr
    for name in (*zoo.names(), "efficientnet-lite"):
        assert f"{name}: " in done.stdout
    assert "Traceback" not in done.stderr


FOX = str(next((path for path in EXAMPLES if path.stem == "fox"), "fox.jpg"))


REFUSED: list[tuple[list[str], str]] = [
    (["predict", "no-such.jpg"], "no-such.jpg"),
    (["predict", __file__], "not an image"),
    (["predict", FOX, "--model", "no_such_model"], "timm"),
    (["predict", FOX, "--model", "no-such.safetensors"], "no-such.safetensors"),
    (["predict", FOX, "--model", "weights.pt"], "there is no file weights.pt"),
    (["predict", FOX, *VIT_T, "--plan", "warp:9"], "warp"),
    (["predict", FOX, *VIT_T, "--plan", "evit:7"], "evit:0.7"),
    (["predict", FOX, "--device", "abacus"], "abacus"),
    (["predict", FOX, "--precision", "fp8"], "precision"),
    (["serve", *VIT_T, "--plan", "warp:9"], "warp"),
    (["serve", "--model", "no-such.safetensors"], "no-such.safetensors"),
    (["serve", "--port", "99999"], "port"),
    (["predict", "no[/such].jpg"], "no[/such].jpg"),
    (["predict", "no[such].jpg"], "no[such].jpg"),
    (["predict", FOX, "--explain", "patches.jpg"], ".png"),
    (["predict", FOX, *VIT_T, "--explain", "no-such-folder/patches.png"], "no-such-folder"),
]
"""Commands, and words of their one line of error."""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[subprocess.CompletedProcess[str]]:
    """All of the refused commands, run on all processors: most of their time goes into imports."""

    def run(case: tuple[list[str], str]) -> subprocess.CompletedProcess[str]:
        arguments = case[0]
        defaults = {"--precision": "fp32"} | ({"--port": "0"} if arguments[0] == "serve" else {})
        missing = [word for pair in defaults.items() if pair[0] not in arguments for word in pair]
        return run_foveate(cache, *arguments, *missing)

    cache = tmp_path_factory.mktemp("refused")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, REFUSED))


@pytest.mark.parametrize(
    "case", range(len(REFUSED)), ids=[" ".join(Path(a).name for a in words) for words, _ in REFUSED]
)
def test_errors_are_one_line(case: int, refusals: list[subprocess.CompletedProcess[str]]) -> None:
    done, words = refusals[case], REFUSED[case][1]
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("foveate: ")
    assert words in lines[0]


def test_an_offer_of_http_2_keeps_its_body(served: ServerProcess) -> None:
    """As the default clients of Java and `curl --http2` send it."""
    url, fox = served.client.base_url, EXAMPLES[0].read_bytes()
    offer = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQBAAAAAAIAAAAA"
    head = (
        f"POST /classify HTTP/1.1\r\nhost: {url.host}:{url.port}\r\n{offer}\r\n"
        f"content-type: image/jpeg\r\ncontent-length: {len(fox)}\r\n\r\n"
    )
    for pieces in ((head.encode() + fox,), (head.encode(), fox)):
        with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.1)
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
