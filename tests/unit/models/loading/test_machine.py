"""The device, the threads, and the setting that profiles record."""

import os

import pytest
import torch

from foveate.core.errors import SetupError
from foveate.models.loading.machine import current_setting, prepare_device

pytestmark = pytest.mark.usefixtures("one_thread")


def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert prepare_device("auto", 1) == ("cuda" if torch.cuda.is_available() else "cpu")


def test_threads_are_set_and_zero_means_one_for_each_core() -> None:
    prepare_device("cpu", 2)
    assert torch.get_num_threads() == 2
    prepare_device("cpu", 0)
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("device", ["warp", "cuda:99", "xpu"])
def test_a_device_that_torch_lacks_is_refused(device: str) -> None:
    with pytest.raises(SetupError, match=f"torch has no device '{device}' on this machine"):
        prepare_device(device, 1)


def test_the_setting_describes_this_process() -> None:
    torch.set_num_threads(1)
    setting = current_setting("cpu", "bf16")
    assert (setting.threads, setting.precision, setting.torch) == (1, "bf16", torch.__version__)
    assert setting.device
    assert setting.differs_from(current_setting("cpu", "bf16")) is None
    assert "bf16, not" in (setting.differs_from(current_setting("cpu", "fp32")) or "")
