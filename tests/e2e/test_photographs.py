"""The default server: photographs without a model's name, and the start without their weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving import ServerProcess, serving
from tests.support.photo_packages import needs_photo_weights, without_photo_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
ESPRESSO = EXAMPLES / "espresso.jpg"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as `make serve` starts it."""
    with serving(tmp_path_factory.mktemp("photographs")) as server:
        yield server


@needs_photo_weights
def test_first_request_of_the_readme_is_answered(served: ServerProcess) -> None:
    answer = served.client.post("/classify?top_k=2", files={"file": ESPRESSO.read_bytes()}).json()
    assert answer["model"] == "efficientnet-lite"
    assert answer["predictions"][0]["label"] == "espresso"
    assert answer["compute"]["plan"] == "efficientnet-lite2@260/fp32"
    assert answer["compute"]["quality"] == 1


@needs_photo_weights
def test_elastic_trunk_is_reached_by_its_name(served: ServerProcess) -> None:
    fox = (EXAMPLES / "drawn" / "fox.jpg").read_bytes()
    answer = served.client.post("/classify?model=vit-t", content=fox, headers={"content-type": "image/jpeg"})
    assert answer.json()["model"] == "vit-t"
    assert answer.json()["predictions"][0]["label"] == "fox"


@needs_photo_weights
def test_every_rung_names_the_espresso(served: ServerProcess) -> None:
    ladder = served.client.get("/models/efficientnet-lite/ladder").json()["ladder"]
    assert len(ladder) >= 5
    for rung in ladder:
        answer = served.classify(ESPRESSO.read_bytes(), {"x-plan": rung["rung"]}).json()
        assert answer["predictions"][0]["label"] == "espresso", rung
        assert 0 < rung["quality"] <= 1


def test_server_without_the_weights_says_so_and_serves_vit_t(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = [without_photo_weights(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    with serving(tmp_path / "cache") as server:
        fox = (EXAMPLES / "drawn" / "fox.jpg").read_bytes()
        assert server.classify(fox).json()["model"] == "vit-t"
        words = " ".join(server.log.text.split())
    assert words.count("pip install 'foveate[photos]'") == 1
