"""Measured batch times on disk: kept for one setting, ignored if damaged, absent without a home folder."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.core.plan import Plan
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.measured_times import MeasuredTimes
from foveate.models.runners.image import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = Plan("m", 224)
HALF = replace(FULL, reducer="evit:0.5")
TIMES = {1: {FULL: {1: 0.02, 8: 0.1}, HALF: {1: 0.01}}, 2: {FULL: {1: 0.015}}}


def kept(weights: str = "a", rungs: tuple[Plan, ...] = (HALF, FULL), full: Plan = FULL) -> MeasuredTimes:
    return MeasuredTimes(weights, full, rungs, "cpu")


def test_times_are_read_as_they_were_written(user_folders: Path) -> None:
    assert kept().read() == {}
    kept().write(TIMES)
    assert kept().read() == TIMES
    (file,) = (user_folders / "cache").rglob("*.json")
    assert file.parent.name == "times"


def test_another_setting_has_times_of_its_own(user_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept().write(TIMES)
    assert kept("b").read() == {}
    assert kept(rungs=(FULL,)).read() == {}
    assert kept(full=replace(FULL, precision="bf16")).read() == {}
    torch.set_num_threads(2)
    assert kept().read() == {}
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "__version__", "99")
    assert kept().read() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"1": {"full": {"1": -1}}}',
        b'{"1": {"full": {"1": NaN}}}',
        b'{"1": 5}',
    ],
)
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(
    content: bytes, user_folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept().write(TIMES)
    (file,) = (user_folders / "cache").rglob("*.json")
    file.write_bytes(content)
    assert kept().read() == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "is damaged and ignored" in caplog.text
    kept().write(TIMES)
    assert kept().read() == TIMES


def test_several_writers_never_leave_half_a_file(user_folders: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: kept().write(TIMES), range(50)):
            assert kept().read() == TIMES
    assert len(list((user_folders / "cache").rglob("*.*"))) == 1


def test_nothing_is_kept_without_a_home_folder_or_a_digest(
    user_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept("").write(TIMES)
    assert kept("").read() == {}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    kept().write(TIMES)
    assert kept().read() == {}


def test_a_second_start_measures_nothing(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> TorchRunner:
        runner = ImageModelLoader().load(str(weights_file), LoadOptions("fp32", "cpu", 1, max_batch=2))
        while runner.warmup.next is not None:
            runner.warmup.run_next()
        return runner

    first = start()
    monkeypatch.setattr(MeasuredTimes, "write", lambda *_: pytest.fail("a time was measured again"))
    assert start().times == first.times
