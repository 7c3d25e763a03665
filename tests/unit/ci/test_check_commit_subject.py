"""The commit-msg hook accepts imperative subjects and says what is wrong with others."""

from pathlib import Path

import pytest
import yaml

from check_commit_subject import main, problems, subject

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "line",
    [
        "Add a response cache",
        "Feed the engine from one queue",
        "Bring replicas up before the peak",
        "R" * 72,
        "Merge branch 'w-front' into main and keep both of their histories, whatever they are called",
        'Revert "fix it."',
        'Reapply "fix it."',
        "fixup! add a response cache.",
        "squash! Adding a response cache",
        "amend! added a cache",
    ],
)
def test_good_subjects_pass(line: str) -> None:
    assert problems(line) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "it is empty"),
        ("R" * 73, "it has 73 characters; use at most 72"),
        ("add a response cache", "start with a capital letter"),
        ("1 cache for all", "start with a capital letter"),
        ("Add a response cache.", "it ends with a period"),
        ("Added a response cache", "it starts with 'Added'; use the imperative"),
        ("Adding a response cache", "it starts with 'Adding'; use the imperative"),
        ("Renamed: the cache", "it starts with 'Renamed'; use the imperative"),
    ],
)
def test_bad_subjects_are_told_how_to_be_fixed(line: str, says: str) -> None:
    (problem,) = problems(line)
    assert says in problem


def test_every_problem_is_reported() -> None:
    assert len(problems("adding " + "x" * 80 + ".")) == 4


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Add a cache\n\nIt is small.\n", "Add a cache"),
        ("\n# a comment\nAdd a cache  \n# another one\n", "Add a cache"),
        ("# Please enter the commit message\n\n", ""),
        ("", ""),
    ],
)
def test_the_subject_is_the_first_line_that_is_no_comment(message: str, expected: str) -> None:
    assert subject(message) == expected


@pytest.mark.parametrize(("message", "status"), [("Add a cache\n", 0), ("added a cache.\n", 1)])
def test_the_exit_status_fails_the_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, status: int
) -> None:
    path = tmp_path / "COMMIT_EDITMSG"
    path.write_text(message)
    assert main([str(path)]) == status
    assert bool(capsys.readouterr().err) == bool(status)


def test_pre_commit_runs_it_on_messages() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert config["default_install_hook_types"] == ["pre-commit", "commit-msg"]
    hooks = {hook["id"]: hook for repository in config["repos"] for hook in repository["hooks"]}
    assert hooks["commit-subject"]["stages"] == ["commit-msg"]
    assert (ROOT / hooks["commit-subject"]["entry"].split()[-1]).is_file()
    assert hooks["check"]["stages"] == ["pre-commit"]
