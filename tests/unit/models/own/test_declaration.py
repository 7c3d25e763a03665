"""What an own model says about itself: defaults, and one sentence for what cannot be used."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.own import OwnModel
from foveate.models.own.declaration import declare
from tests.support.own_models import Brightness, TwoNetworks


def model_with(predict: Callable[..., Any] = lambda self, batch: [], **members: Any) -> Any:
    return type("Mine", (), {"predict": predict, **members})()


def test_defaults() -> None:
    declared = declare(model_with())
    assert (declared.name, declared.sizes, declared.variants) == ("Mine", (224,), ("Mine",))
    assert (declared.labels, declared.softmax, declared.version) == ((), False, "")
    assert declared.input == InputSpec()
    assert not declared.keywords
    assert not declared.preprocesses


def test_the_protocol_is_predict_alone() -> None:
    assert isinstance(model_with(), OwnModel)
    assert not isinstance(object(), OwnModel)


def test_members_are_read() -> None:
    declared = declare(
        model_with(
            name="my cats", labels=["a", "b"], sizes=(224, 96), softmax=True, version=3, max_batch=4,
            input=InputSpec(0.9), preprocess=lambda self, image: image,
        )
    )  # fmt: skip
    assert (declared.name, declared.labels, declared.sizes) == ("my-cats", ("a", "b"), (96, 224))
    assert (declared.softmax, declared.version, declared.max_batch) == (True, "3", 4)
    assert declared.input == InputSpec(0.9)
    assert declared.preprocesses
    assert declare(Brightness()).description == "Says whether an image is dark or bright."


def test_predict_gets_the_keywords_that_it_names() -> None:
    assert declare(TwoNetworks()).keywords == {"variant", "size"}
    assert declare(model_with(lambda self, batch, **rest: [])).keywords == {"variant", "size", "plan"}
    assert declare(model_with(lambda self, *args: [])).keywords == frozenset()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"predict": None}, "no method predict"),
        ({"predict": lambda self: []}, "takes no batch"),
        ({"predict": lambda self, batch, mask: []}, "needs the argument mask"),
        ({"sizes": (4,)}, "sides are 10 to 4096 pixels"),
        ({"sizes": 224}, "must be a list"),
        ({"sizes": range(10, 4000)}, r"3990 sizes of 1 variant\(s\), and at most 100 plans .*: name fewer"),
        ({"sizes": count(10)}, "sides are 10 to 4096 pixels"),
        ({"labels": count()}, "there are more than 1000000 class names"),
        (
            {"labels": ("cat", "d\x1b[31mog")},
            r"the name of class 1, 'd.x1b.31mog', holds a control character",
        ),
        ({"labels": {"0": "\ud800"}}, "holds a control character"),
        ({"max_batch": 10**9}, "whole number up to 1024"),
        ({"sizes": ("224",)}, "whole number"),
        ({"labels": "cat"}, "must be a list"),
        ({"variants": ("a b",)}, "letters, digits"),
        ({"variants": ("a", "a")}, "twice"),
        ({"variants": ("a", "b")}, "predict does not take one"),
        ({"input": "center"}, "must be a foveate.models.own.InputSpec"),
        ({"max_batch": -1}, "whole number"),
        ({"version": object()}, "short text"),
        ({"softmax": "yes"}, "True or False"),
        ({"labels": {"cat": 0}}, "no class indices"),
        ({"predict": lambda self, **rest: []}, "takes no batch"),
    ],
)
def test_bad_members(members: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        declare(model_with(**members))


def test_methods_of_other_meaning_are_no_declarations() -> None:
    names = ("softmax", "version", "labels", "sizes", "input", "name")
    declared = declare(model_with(**{name: lambda self: 1 / 0 for name in names}))
    assert (declared.softmax, declared.version, declared.labels, declared.sizes) == (False, "", (), (224,))
    assert declared.input == InputSpec()


def test_a_table_of_labels_by_index_and_sizes_of_numpy() -> None:
    declared = declare(model_with(labels={1: "dog", "0": "cat"}, sizes=np.array([64, 32])))
    assert (declared.labels, declared.sizes) == (("cat", "dog"), (32, 64))


def test_a_default_of_the_batch_and_an_empty_docstring() -> None:
    declared = declare(model_with(lambda self, batch=None, size=0: [], __doc__="  "))
    assert declared.keywords == {"size"}
    assert declared.description == "your own model"


def test_an_async_predict_is_refused() -> None:
    async def predict(self: Any, batch: Any) -> Any: ...

    with pytest.raises(SetupError, match="write it with def"):
        declare(model_with(predict))


def test_options_come_before_members() -> None:
    stated = CheckpointOptions(labels=("x",), crop_pct=0.5)
    declared = declare(model_with(labels=("a",)), stated)
    assert declared.labels == ("x",)
    assert declared.input == InputSpec(0.5)


def test_options_that_its_own_code_decides_are_refused() -> None:
    with pytest.raises(SetupError, match="--mean cannot be stated"):
        declare(model_with(), CheckpointOptions(mean=(0.5, 0.5, 0.5)))
    with pytest.raises(SetupError, match="undecoded bytes"):
        declare(model_with(input=None), CheckpointOptions(crop_pct=0.5))
