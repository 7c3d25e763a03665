"""The loader of transformers' models passes image classifiers on to the opaque runner."""

import json
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.transformers_models import TransformersLoader
from foveate.models.opaque.runner import OpaqueRunner
from loadtests.reach.architectures import classifier, processor
from tests.support import pretrained
from tests.support.torchvision_ops import import_transformers

import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread", "user_folders")

OPTIONS = LoadOptions("fp32", "cpu", 1)


def saved(folder: Path, name: str) -> str:
    classifier(name).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor()))
    return str(folder)


def test_classifiers_run_as_they_are(tmp_path: Path) -> None:
    name = saved(tmp_path / "a", "ConvNext")
    assert isinstance(TransformersLoader().load(name, OPTIONS, warm_ladder=False), OpaqueRunner)
    unprofiled = TransformersLoader().load_unprofiled(name, OPTIONS)
    assert isinstance(unprofiled.runner, OpaqueRunner) and not unprofiled.siblings


def test_classifiers_have_siblings(tmp_path: Path) -> None:
    own, sibling = saved(tmp_path / "a", "ConvNext"), saved(tmp_path / "b", "ResNet")
    unprofiled = TransformersLoader().load_unprofiled(own, OPTIONS, (sibling,))
    assert set(unprofiled.siblings) == {"b"}
    assert unprofiled.runner.card.variants == {"a", "b"}


def test_segmenters_have_none(tmp_path: Path) -> None:
    pretrained.segformer().save_pretrained(tmp_path / "s")
    table = pretrained.SQUARE | pretrained.RANGE
    (tmp_path / "s" / "preprocessor_config.json").write_text(json.dumps(table))
    with pytest.raises(SetupError, match="no other model can answer in its name"):
        TransformersLoader().load_unprofiled(str(tmp_path / "s"), OPTIONS, ("vit-xs",))
