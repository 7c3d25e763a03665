"""The machine that models run on: torch's device and threads, and their description in a profile."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from foveate.core.errors import SetupError
from foveate.core.processor import cpu_name
from foveate.core.profile import MeasurementEnvironment

ONEDNN_CACHED_KERNELS = 1024
"""Prepared kernels that oneDNN keeps, for all models of the process. One takes half a megabyte, and the first
batch of a plan and size prepares up to 30 of them in about 15 ms. With 4096, a default server grew to 2.5 GB;
with fewer than the batches of a burst need, each batch takes longer by what it has to prepare again."""


def prepare_device(device: str, threads: int) -> str:
    """Set torch's threads and give the device to run on: "auto" becomes "cuda" or "cpu".

    `threads` 0: one for each core that this process may use. Raises SetupError if torch lacks the device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise SetupError(f"torch has no device {device!r} on this machine") from None
    # oneDNN reads this at the first forward.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_CACHED_KERNELS))
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return device


def hardware(device: str) -> str:
    """What decides the speed of torch's device: the name of the GPU, or the features of the processor."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else processor_features()


def processor_features() -> str:
    """What decides a CPU's speed in each precision: its name and its instruction sets."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    lines = info.read_text().splitlines()
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def current_setting(device: str, precision: str) -> MeasurementEnvironment:
    """The hardware, versions and threads of this process, as a profile records them."""
    return MeasurementEnvironment(
        device=torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        threads=torch.get_num_threads(),
        precision=precision,
        torch=str(torch.__version__),
        python=platform.python_version(),
        foveate=version("foveate"),
        date=date.today().isoformat(),
    )
