"""Vision transformers on the Hugging Face hub, from an offline cache and from a server on this machine."""

import json
import logging
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import load_file

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.loading.load import ImageModelLoader, family
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.loading.registry import loader_for
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.weights import hub, transformers_hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.transformers_hub import is_hub_name, is_trunk_repository
from tests.support.checkpoints import answer
from tests.support.towers import LABELS, TOWERS, saved

pytestmark = pytest.mark.usefixtures("one_thread", "forgotten_names")
COMMIT = "0" * 40
README = "---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Animals\n"


@pytest.fixture
def forgotten_names() -> Iterator[None]:
    """No repository was asked for before."""
    transformers_hub._configuration.cache_clear()
    yield
    transformers_hub._configuration.cache_clear()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no network beyond it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, repository: str, model: Any, **how: Any) -> Path:
    """Lay a model out as the hub's cache does after a download."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    folder = saved(home / "snapshots" / COMMIT, model, **how)
    (folder / "README.md").write_text(README)
    return folder


def test_model_by_name(cache: Path) -> None:
    folder = cached(cache, "zoo/animals", TOWERS["ViTForImageClassification"]())
    expected = hub.load(str(folder))
    for name in ("zoo/animals", "hf:zoo/animals"):
        loaded = hub.load(name)
        assert (loaded.name, loaded.labels, loaded.licence) == ("animals", LABELS, "apache-2.0")
        assert loaded.source == "https://huggingface.co/zoo/animals"
        assert loaded.mean == (0.485, 0.456, 0.406)
        assert answer(loaded).equal(answer(expected))
        assert isinstance(loader_for(name), ElasticOrOpaqueLoader)
        assert not huggingface.is_transformers_name(name)


@pytest.mark.parametrize("kind", ["CLIPModel", "Dinov2WithRegistersModel", "SiglipModel"])
def test_model_of_embeddings_in_shards(cache: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    caplog.set_level(logging.WARNING)
    folder = cached(cache, "zoo/embeds", TOWERS[kind](), max_shard_size="40KB")
    assert not (folder / "model.safetensors").exists()
    loaded = hub.load("zoo/embeds")
    assert (loaded.name, loaded.config.classes, loaded.labels) == ("embeds", 0, ())
    assert not [record for record in caplog.records if record.name.startswith("foveate")]


def test_server_of_a_name(cache: Path) -> None:
    cached(cache, "zoo/animals", TOWERS["DeiTForImageClassification"]())
    runner = loader_for("zoo/animals").load("zoo/animals", LoadOptions("fp32", "cpu", 1))
    assert runner.card.name == "animals"
    assert runner.card.labels == LABELS
    stated = LoadOptions(
        "fp32", "cpu", 1, checkpoints={"hf:zoo/animals": CheckpointOptions(labels=("a", "b", "c"))}
    )
    assert loader_for("hf:zoo/animals").load("hf:zoo/animals", stated).card.labels == ("a", "b", "c")


def test_siblings_of_a_profile_are_those_of_the_organisation(cache: Path) -> None:
    cached(cache, "zoo/animals", TOWERS["ViTForImageClassification"]())
    cached(cache, "zoo/lighter", TOWERS["ViTForImageClassification"](num_hidden_layers=1))
    options = LoadOptions("fp32", "cpu", 1)
    unprofiled = ImageModelLoader().load_unprofiled("zoo/animals", options, ("zoo/lighter",))
    assert list(unprofiled.siblings) == ["lighter"]
    named = family("zoo/animals", hub.load("zoo/animals"), tuple(unprofiled.siblings))
    assert [sibling.config.depth for sibling in named.siblings] == [1]


def test_folder_under_the_prefix(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", TOWERS["ViTForImageClassification"]())
    assert isinstance(loader_for(f"hf:{folder}"), ElasticOrOpaqueLoader)
    loaded = hub.load(f"hf:{folder}")
    assert (loaded.name, loaded.labels) == ("a", LABELS)


@pytest.mark.parametrize(
    "changes", [{"model_type": "segformer"}, {"model_type": "beit"}, {"model_type": "siglip2"}]
)
def test_models_that_the_trunk_does_not_run(cache: Path, changes: dict[str, Any]) -> None:
    folder = cached(cache, "zoo/others", TOWERS["ViTModel"]())
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | changes))
    assert not is_trunk_repository("zoo/others")
    assert isinstance(loader_for("zoo/others"), TransformersLoader)


def test_refusal_comes_before_the_weights(cache: Path) -> None:
    folder = cached(cache, "zoo/animals", TOWERS["ViTForImageClassification"]())
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | {"problem_type": "multi_label_classification"}))
    (folder / "model.safetensors").unlink()
    assert isinstance(loader_for("zoo/animals"), ElasticOrOpaqueLoader)
    with pytest.raises(NotElastic, match="multi_label_classification"):
        hub.load("zoo/animals")


def test_weights_that_are_not_in_the_cache(cache: Path) -> None:
    folder = cached(cache, "zoo/animals", TOWERS["ViTForImageClassification"]())
    (folder / "model.safetensors").unlink()
    sentence = r"^zoo/animals cannot be fetched: the hub at .* is switched off by HF_HUB_OFFLINE, and the"
    with pytest.raises(SetupError, match=sentence) as refused:
        hub.load("zoo/animals")
    assert "\n" not in refused.value.detail


@pytest.mark.usefixtures("cache")
def test_names_that_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not is_trunk_repository("missing/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "local").mkdir(parents=True)
    names = (
        "timm/vit_tiny_patch16_224",
        "vit-t",
        "a/b/c",
        "a/b.pt",
        "a/b.safetensors",
        "org/local",
        "hf:a/b",
        "/a/b",
    )
    for name in names:
        assert not is_hub_name(name), name
    assert is_hub_name("google/vit-base-patch16-224")


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    assert not is_trunk_repository("zoo/animals")
    with pytest.raises(
        SetupError, match=r"zoo/animals needs huggingface_hub.*: pip install 'foveate\[transformers\]'"
    ):
        transformers_hub.fetch_weights("zoo/animals")


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub that downloads: files of a folder under /org/name/resolve/REVISION/FILE."""

    folder: Path
    requested: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = unquote(self.path).strip("/").split("/")
        file = self.folder / parts[-1]
        if body:
            self.requested.append(parts[-1])
        if "resolve" not in parts or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{parts[-1]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Nothing is logged."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Hub]]:
    """A hub on this machine, and an empty cache."""
    from huggingface_hub import constants

    handler = type("_HubOfOneFolder", (_Hub,), {"folder": tmp_path / "served", "requested": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler
    server.shutdown()
    server.server_close()


def test_download(served: type[_Hub]) -> None:
    model = TOWERS["CLIPModel"]()
    saved(served.folder, model)
    (served.folder / "pytorch_model.bin").write_bytes(b"never asked for")
    loaded: Checkpoint = hub.load("zoo/clip")
    assert answer(loaded).equal(answer(hub.load(str(served.folder))))
    assert sorted(served.requested) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_download_of_shards(served: type[_Hub]) -> None:
    saved(served.folder, TOWERS["ViTModel"](), max_shard_size="40KB")
    assert hub.load("zoo/vit").config.classes == 0
    assert "model.safetensors.index.json" in served.requested


def test_repository_with_a_file_of_torch_alone(served: type[_Hub]) -> None:
    saved(served.folder, TOWERS["CLIPModel"]())
    expected = answer(hub.load(str(served.folder)))
    main = served.folder / "model.safetensors"
    torch.save(load_file(main), served.folder / "pytorch_model.bin")
    main.unlink()
    for name in ("zoo/clip", str(served.folder)):
        assert torch.allclose(answer(hub.load(name)), expected, atol=1e-5)
    assert sorted(served.requested) == ["config.json", "preprocessor_config.json", "pytorch_model.bin"]


def test_repository_without_weights(served: type[_Hub]) -> None:
    saved(served.folder, TOWERS["ViTModel"]())
    (served.folder / "model.safetensors").rename(served.folder / "tf_model.h5")
    with pytest.raises(SetupError, match=r"^zoo/vit has no model\.safetensors, no shards of it and no pyt"):
        hub.load("zoo/vit")
