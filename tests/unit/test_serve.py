"""`foveate.serve`: a callable module, and engines for applications of your own."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import foveate
import foveate.serve
from foveate.core.default_models import DEFAULT_MODELS
from foveate.core.errors import BadPlan, BrokenMedia, FoveateError, SetupError, UnsupportedMedia
from foveate.core.model import Rung
from foveate.core.settings import Settings
from foveate.gateway.cli import serve_local
from foveate.models.loading.own_models import load_object
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import serving
from tests.support.media_samples import encode, flat
from tests.support.own_models import Brightness, FirstPixels
from tests.support.photo_packages import without_photo_weights

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
WHITE, BLACK = (encode(flat("RGB", colour), "png") for colour in ((255, 255, 255), (0, 0, 0)))


def test_the_module_is_callable_and_the_package_stays_a_namespace() -> None:
    assert isinstance(foveate.serve, ModuleType)
    assert callable(foveate.serve)
    assert foveate.__file__ is None
    assert not list(ROOT.glob("*/foveate/__init__.py"))
    from foveate import serve

    assert serve is foveate.serve


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(SetupError, match="give one of them another name"):
        foveate.serve.serve(Brightness(), Brightness())


def test_without_names_the_installed_default_models_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(without_photo_weights(tmp_path))
    served: list[tuple[str, ...]] = []
    monkeypatch.setattr(serve_local, "serve", lambda config, *_: served.append(config.models))
    foveate.serve.serve(port=0)
    assert served == [DEFAULT_MODELS[1:]]


def test_a_bad_setting_is_one_sentence() -> None:
    with pytest.raises(SetupError, match="port"):
        foveate.serve(Brightness(), port=-1)  # type: ignore[operator]


def test_a_file_that_serves_while_it_is_imported_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nested_server.py"
    file.write_text(
        "import foveate.serve\n\nclass Model:\n    def predict(self, batch): return [[1.0]] * len(batch)\n\n"
        "foveate.serve(Model())\n"
    )
    with pytest.raises(SetupError, match="__main__"):
        foveate.serve.engine(f"{file}:Model")


def test_a_default_plan_that_the_model_cannot_run_is_refused() -> None:
    with pytest.raises(BadPlan, match="sizes and variants only"):
        foveate.serve._load("Brightness", Settings(plan="evit:0.5"), {"Brightness": Brightness()})


def test_decode() -> None:
    card = load_object(Brightness(), Settings(threads=1)).card
    pixels = foveate.serve.decode(WHITE, card)
    assert (pixels.shape, pixels.dtype, pixels.min()) == ((64, 64, 3), np.uint8, 255)
    larger = replace(card, ladder=(Rung(replace(card.full, image_size=96), 1.0, 1, 0.9), *card.ladder))
    assert foveate.serve.decode(WHITE, larger).shape == (96, 96, 3)
    wide = encode(flat("RGB", (255, 0, 0), (200, 100)), "png")
    assert foveate.serve.decode(wide, replace(card, task="segment")).shape == (64, 64, 3)
    assert foveate.serve.decode(b"raw", replace(card, input=None)) == b"raw"
    with pytest.raises(BrokenMedia):
        foveate.serve.decode(b"\x89PNG\r\n\x1a\nbroken", card)
    for other in (replace(card, frames=8), replace(card, task="clicks")):
        with pytest.raises(UnsupportedMedia, match="no single images"):
            foveate.serve.decode(WHITE, other)


def your_app() -> FastAPI:
    """A plain FastAPI application with an engine inside, in ten lines."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with foveate.serve.engine(Brightness(), threads=1) as app.state.engine:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/label")
    async def label(request: Request, deadline_s: float = 60.0, min_quality: float = 0.0) -> dict[str, Any]:
        engine = request.app.state.engine
        pixels = await asyncio.to_thread(foveate.serve.decode, await request.body(), engine.card)
        outcome = await engine.submit(pixels, deadline_s=deadline_s, min_quality=min_quality)
        best = outcome.result.scores.argmax()
        return {"label": engine.card.labels[best], "batch": outcome.batch_size}

    @app.exception_handler(FoveateError)
    async def failed(_: Request, error: FoveateError) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status)

    return app


async def test_an_engine_in_a_fastapi_application() -> None:
    app = your_app()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answers = await asyncio.gather(*(client.post("/label", content=b) for b in (WHITE, BLACK) * 8))
        assert [answer.json()["label"] for answer in answers] == ["bright", "dark"] * 8
        assert max(answer.json()["batch"] for answer in answers) > 1
        late = await client.post("/label?deadline_s=0.000001", content=WHITE)
        assert late.status_code in (429, 504)
        assert (await client.post("/label?min_quality=2", content=WHITE)).status_code == 400
        assert (await client.post("/label", content=b"text")).status_code in (415, 422)
    with pytest.raises(FoveateError):  # the lifespan has closed it
        await app.state.engine.submit(np.zeros((64, 64, 3), np.uint8))


async def test_an_engine_for_a_runner_of_your_own() -> None:
    async with foveate.serve.Engine(FakeRunner()) as engine:
        assert (await engine.submit("item", deadline_s=20)).reason == "full"


@pytest.mark.parametrize(("version", "cached"), [("1", "hit"), (None, None)])
async def test_answers_are_cached_under_the_version(version: str | None, cached: str | None) -> None:
    model = Brightness()
    if version:
        model.version = version  # type: ignore[attr-defined]
    async with serving(load_object(model, Settings(threads=1))) as gateway:
        for _ in range(2):
            response = await gateway.post("/classify", WHITE)
        assert response.json()["predictions"][0]["label"] == "bright"
        assert response.headers.get("x-cache") == cached
        assert gateway.counted("ok") == 2


async def test_an_own_model_over_http() -> None:
    """Failures end alone, deadlines are kept, and a plan of the model's own can be named."""
    runner = load_object(FirstPixels(), Settings(threads=1))
    async with serving(runner, cache_bytes=0) as gateway:
        bodies = [encode(flat("RGB", (red, 0, 0), (16, 16)), "png") for red in (2, 13, 200, 201, 3)]
        answers = await asyncio.gather(*(gateway.post("/classify", body) for body in bodies))
        assert [answer.status_code for answer in answers] == [200, 500, 500, 500, 200]
        assert [answers[i].json()["predictions"][0]["label"] for i in (0, 4)] == ["zero", "one"]
        assert "thirteen" not in answers[1].text  # what the user's code says is in the log alone
        late = await gateway.post("/classify", bodies[0], x_slo_ms="0.001")
        assert late.status_code in (429, 504)
        assert (await gateway.post("/classify", bodies[0], x_plan="FirstPixels@32")).status_code == 400
        assert (await gateway.get("/models")).json()["models"][0]["classes"] == 2


def test_serving_from_python_prints_its_address_and_ends_with_a_signal(tmp_path: Path) -> None:
    program = (
        "import foveate.serve, os, signal, threading\n"
        "from tests.support.own_models import Brightness\n"
        "threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "foveate.serve(Brightness(), port=0, threads=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, -15, 143), done.stderr
    assert "Brightness@64/fp32" in done.stdout


def test_models_in_two_places_are_refused() -> None:
    with pytest.raises(SetupError, match="name all of them in one place"):
        foveate.serve.serve("vit-t", models=("vit-xs",))
