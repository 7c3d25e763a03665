"""A model without a classifier, through a real server: `foveate serve --model FILE` and POST /embed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foveate.gateway.schemas.embedding import ImageEmbedding
from tests.e2e.serving import CLUSTERS, ServerProcess, serving
from tests.support.embedders import saved_embedder

JPEG = {"content-type": "image/jpeg"}
FOX = Path(__file__).parents[2] / "examples" / "drawn" / "fox.jpg"


@pytest.fixture(scope="module", params=CLUSTERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("embedder")
    with serving(folder, "--model", str(saved_embedder(folder)), *CLUSTERS[request.param]) as server:
        yield server


def embed(served: ServerProcess, query: str = "", **headers: str) -> ImageEmbedding:
    named = JPEG | {name.replace("_", "-"): value for name, value in headers.items()}
    response = served.client.post(f"/embed{query}", content=FOX.read_bytes(), headers=named)
    assert response.status_code == 200, response.text
    return ImageEmbedding.model_validate_json(response.content)


def test_image_is_embedded(served: ServerProcess) -> None:
    answer, raw = embed(served, "?normalize=true"), embed(served)
    assert (answer.model, answer.dimensions, len(answer.embedding)) == ("embedder", 24, 24)
    assert np.linalg.norm(answer.embedding) == pytest.approx(1, abs=1e-5)
    length = np.linalg.norm(raw.embedding)
    np.testing.assert_allclose(np.array(raw.embedding) / length, answer.embedding, atol=1e-6)


def test_a_cheaper_plan_takes_less_compute(served: ServerProcess) -> None:
    full, half = (embed(served, "?normalize=true", x_plan=plan) for plan in ("full", "evit:0.3"))
    assert half.compute.gflops < full.compute.gflops
    assert 0.5 < np.dot(half.embedding, full.embedding) < 1


def test_the_model_is_no_classifier(served: ServerProcess) -> None:
    data = FOX.read_bytes()
    named = served.client.post("/classify?model=embedder", content=data, headers=JPEG)
    assert (named.status_code, named.json()["title"]) == (404, "Unknown model")
    assert "is served under /embed" in named.json()["detail"]
    assert served.client.post("/classify", content=data, headers=JPEG).status_code == 404
