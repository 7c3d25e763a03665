"""Which class a folder's name means: labels, synonyms, indices, WordNet ids, and hints for the rest."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.models.profiling import class_names
from foveate.models.profiling.class_names import class_indices

LABELS = ("Red apple", "golden retriever, dog", "crane, bird", "crane, machine", "7")
IMAGENET = tuple(f"label {i}" for i in range(1000))


def indices(names: Sequence[str], labels: Sequence[str] = LABELS) -> list[int]:
    folders = [Path("data", name) for name in names]
    classes = class_indices(folders, labels)
    return [classes[folder] for folder in folders]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("red apple", 0),
        ("RED_APPLE", 0),
        ("golden_retriever", 1),
        ("dog", 1),
        ("Golden retriever, dog", 1),
        ("machine", 3),
        ("0002", 2),
        ("7", 4),
    ],
)
def test_a_folder_is_named_by_a_label_a_synonym_or_an_index(name: str, index: int) -> None:
    assert indices([name]) == [index]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["crane"], "data/crane stands for more than one class"),
        (["quince"], "data/quince stands for no class of the model"),
        (["9"], "data/9 stands for no class"),
        (
            ["train", "val"],
            "data holds the parts train, val of a dataset: pass one of them, as in --data data/",
        ),
        (["n01440764"], "data/n01440764 is a WordNet id, .* the model has 5 classes"),
    ],
)
def test_a_folder_that_means_no_class_is_refused_with_a_hint(names: list[str], sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence) as refused:
        indices(names)
    assert "\n" not in refused.value.detail


def test_wordnet_ids_are_the_classes_of_imagenet() -> None:
    assert indices(["n01440764", "n01443537", "n15075141"], IMAGENET) == [0, 1, 999]
    with pytest.raises(SetupError, match="n99999999 is a WordNet id"):
        indices(["n99999999"], IMAGENET)


def test_without_timm_a_complete_dataset_gives_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_names, "find_spec", lambda _: None)
    names = [f"n{10_000_000 + 7 * i}" for i in range(1000)]
    assert indices([names[5], names[999], *names], IMAGENET)[:2] == [5, 999]
    with pytest.raises(SetupError, match=r"is a WordNet id, which is known .* with timm installed"):
        indices(names[:10], IMAGENET)
