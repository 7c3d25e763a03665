"""Discovery of modules and of entry points."""

from pathlib import Path

import pytest

from foveate.models import exits, reduction
from foveate.models.registry import declared_candidates, discover


def test_every_module_of_a_package_is_a_method() -> None:
    names = {file.stem for file in Path(exits.__file__).parent.glob("*.py")} - {"__init__"}
    methods = discover(exits, "foveate.no_such_group")
    assert set(methods) == names
    assert methods["confidence"]()("0.9") == exits.create("0.9")


def test_modules_win_over_entry_points_and_a_broken_plug_in_breaks_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "plug-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[foveate.test]\nbroken = no_such_module:build\nevit = no_such_module:build\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = discover(reduction, "foveate.test")
    assert callable(methods["evit"]())
    with pytest.raises(ModuleNotFoundError):
        methods["broken"]()


def test_the_candidates_of_a_method_are_declared_beside_its_build() -> None:
    loaders = exits.catalogue()
    assert declared_candidates(loaders["patience"], 3) == ("1", "2")
    assert declared_candidates(lambda: len, 3) == (), "a module without candidates offers none"
