"""Files of labels: what is read, and one sentence for each refusal."""

from pathlib import Path

import pytest

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.weights.options_file import parse_options, with_labels_read


def read(path: Path) -> object:
    return with_labels_read(CheckpointOptions(labels=str(path))).labels


def test_one_name_in_each_line_of_any_system(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf cat\t\r\n\r\n\xf0\x9f\x90\x95 dog\rfox\xc2\xa0\n")
    assert read(tmp_path / "labels.txt") == ("cat", "🐕 dog", "fox")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, r"cannot be read: there is no such file, and --labels takes its path$"),
        (b"caf\xe9", r"cannot be read: it is no text in UTF-8: convert it$"),
        (
            b"cat\nd\x1b[31mog\n",
            r"the name of class 1, 'd\\x1b\[31mog', holds a control character: remove it$",
        ),
        (b"cat\x1cdog\n", "holds a control character"),
        (b"cat\xe2\x80\xa8dog\n", "holds a control character"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SetupError, match=rf"^the labels in .*{sentence}") as refused:
        read(path)
    assert refused.value.detail.isprintable() and "Errno" not in refused.value.detail


def test_labels_of_a_json_file_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^here: labels cannot be .*holds a control character"):
        parse_options({"labels": ["a", "b\u0000"]}, "here", tmp_path)


def test_a_path_with_a_null_character_is_refused() -> None:
    with pytest.raises(SetupError, match="cannot be read: "):
        read(Path("a\0b"))
