"""Own models by name: what is imported, and one sentence for everything that goes wrong."""

from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.models.own.source import describe_error, file_of, find_own, is_own

SOURCE = """
import json

class {name}:
    labels = ["a"]
    def predict(self, batch):
        return [[1.0]] * len(batch)

class Needs:
    def __init__(self, weights, device="cpu"): ...
    def predict(self, batch): ...

class Explodes:
    def __init__(self):
        json.loads("{{")
    def predict(self, batch): ...

class Leaves(Explodes):
    def __init__(self):
        raise SystemExit("bye")

def build():
    return {name}()

made = build()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the import path yet."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name="Tiny"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    return name


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("package.module:Class", True),
        ("module:Class.inner", True),
        ("path/to/my-file.py:Class", True),
        ("file.py", True),
        ("C:/models/file.py:Class", True),
        ("net.onnx", True),
        ("path/net.onnx", True),
        ("vit_small_patch16_224", False),
        ("random:vit_small_patch16_224", False),
        ("hf:name", False),
        ("hf-hub:timm/vit_base_patch16_224", False),
        ("org/name", False),
        ("file.safetensors", False),
        ("vit_base_patch16_224.augreg_in21k", False),
    ],
)
def test_which_names_are_own_models(name: str, own: bool) -> None:
    assert is_own(name) is own


def test_files_of_names() -> None:
    assert file_of("a/b.py:C") == Path("a/b.py")
    assert file_of("a/b.onnx") == Path("a/b.onnx")
    assert file_of("a.b:C") is None


@pytest.mark.parametrize("target", ["Tiny", "build", "made"])
def test_a_class_a_function_and_an_object(module: str, target: str) -> None:
    for name in (f"{module}:{target}", f"{module}.py:{target}", f"./{module}.py:{target}"):
        assert type(find_own(name)).__name__ == "Tiny"


def test_a_file_without_a_class_names_those_in_it(module: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"names no class, as in .*Tiny, Needs, Explodes"):
        find_own(f"{module}.py")
    (tmp_path / "single.py").write_text("class One:\n    def predict(self, batch): ...\n")
    assert type(find_own("single.py")).__name__ == "One"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("{}:Nothing", "there is no Nothing in .*models in it are Tiny"),
        ("{}:Needs", "needs the argument weights: give it a default"),
        ("{}:Explodes", r"could not be made: JSONDecodeError: .*\(.*own_.*\.py, line 15\)"),
        ("{}:Leaves", "SystemExit: bye"),
        ("nowhere.at.all:Model", "there is no module nowhere, which"),
        ("{}.missing:Model", r"there is no module own_.*\.missing"),
        ("nofile.py:Model", "there is no file nofile.py"),
        ("folder/nofile.py:Model", "there is no file folder/nofile.py"),
    ],
)
def test_one_sentence_for_what_is_wrong(module: str, target: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as failure:
        find_own(target.format(module))
    assert "\n" not in failure.value.detail


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_there_at_all", r"No module named 'not_there_at_all' \(.*broken\.py, line 1\)"),
        ("x = 1\nx / 0\n", r"ZeroDivisionError: division by zero \(.*broken\.py, line 2\)"),
        ("def f(:\n", r"SyntaxError: .*broken\.py, line 1"),
        ("\0", r"could not be imported: SyntaxError: source code string cannot contain null bytes$"),
        ("import sys\nsys.exit(4)\n", r"SystemExit: 4 \(.*broken\.py, line 2\)"),
    ],
)
def test_errors_at_import(module: str, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    for name in ("broken:Model", "broken.py:Model"):
        with pytest.raises(SetupError, match=words) as failure:
            find_own(name)
        assert "\n" not in failure.value.detail
    (tmp_path / "broken.py").write_text("class Model:\n    def predict(self, batch): ...\n")
    assert find_own("broken.py:Model")  # a file that failed can be imported again


def test_files_beside_a_file_can_be_imported(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "neighbour_of_it.py").write_text("VALUE = 3\n")
    (folder / "main_one.py").write_text(
        "from neighbour_of_it import VALUE\n\nclass One:\n    def predict(self, batch): ...\n"
    )
    assert find_own("elsewhere/main_one.py:One")


def test_an_error_in_a_library_names_the_users_line() -> None:
    try:
        __import__("json").loads("{")
    except ValueError as error:
        text = describe_error(error)
    assert text.startswith("JSONDecodeError: Expecting property name")
    assert f"({__file__}, line " in text
