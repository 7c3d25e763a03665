"""Bounded files: they end at a limit, and say so only when they are checked."""

import io
import re
import time
from pathlib import Path

import pytest

from foveate.core.errors import ClipTooLarge
from foveate.gateway.media.bounded_file import BoundedFile, ReadLimitedFile

DATA = bytes(range(100))


@pytest.mark.parametrize("on_disk", [False, True])
def test_reads_like_a_file_within_its_limits(on_disk: bool, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(DATA)
    with BoundedFile(path if on_disk else DATA, 10.0) as file:
        file.allow(100)
        assert file.size == 100
        assert file.read(10) == DATA[:10]
        assert (file.seek(-5, io.SEEK_END), file.tell()) == (95, 95)
        assert file.read() == DATA[95:]
        assert file.read() == b""
        file.check()


def test_an_unknown_seek_of_libav_is_answered_with_minus_one() -> None:
    with BoundedFile(DATA, 10.0) as file:
        assert file.seek(0, 0x10000) == -1
        assert file.tell() == 0


def test_after_the_allowed_bytes_the_file_ends_and_the_check_fails() -> None:
    with BoundedFile(DATA, 10.0) as file:
        file.allow(30)
        assert len(file.read(40)) == 30, "one read of a large element could take all memory"
        file.check()
        assert file.read(1) == b""
        with pytest.raises(ClipTooLarge, match="larger than the server reads"):
            file.check()


def test_after_the_deadline_the_file_ends_and_the_check_fails() -> None:
    with BoundedFile(DATA, 0.01) as file:
        file.allow(100)
        time.sleep(0.02)
        assert file.read(10) == b""
        with pytest.raises(ClipTooLarge, match=r"over 0\.01 s"):
            file.check()
        with pytest.raises(ClipTooLarge):
            file.read_at(0, 10)


def test_reads_at_a_position_do_not_count() -> None:
    with BoundedFile(DATA, 10.0) as file:
        assert file.read_at(90, 50) == DATA[90:]
        assert file.read_at(200, 5) == b""
        file.check()


def test_marks_in_a_header_are_counted_across_reads() -> None:
    with BoundedFile(b".ab." * 5, 10.0) as file:
        file.allow(100)
        file.start_header(re.compile(b"ab"), 4, 10.0)
        assert len(file.read(2) + file.read(8)) == 10
        file.check()
        file.read(10)
        assert file.read(1) == b"", "five marks are one too many"
        with pytest.raises(ClipTooLarge, match="remove its metadata"):
            file.end_header()


def test_marks_after_the_header_do_not_count() -> None:
    with BoundedFile(b"ab" * 5, 10.0) as file:
        file.allow(100)
        file.start_header(re.compile(b"ab"), 4, 10.0)
        file.read(4)
        file.end_header()
        assert len(file.read(6)) == 6
        file.check()


def test_a_header_that_takes_too_much_processor_time_ends() -> None:
    with BoundedFile(DATA, 10.0) as file:
        file.allow(100)
        file.start_header(None, 0, 0.0)
        assert file.read(10) == b""
        with pytest.raises(ClipTooLarge, match="remove its metadata"):
            file.end_header()


def test_too_many_reads_fail() -> None:
    file = ReadLimitedFile(b"abc")
    file.reads_left = 2
    assert (file.read(1), file.read()) == (b"a", b"bc")
    with pytest.raises(ValueError, match="too many chunks"):
        file.read(1)
