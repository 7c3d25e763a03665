"""The processor of this machine."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's name, as a profile records it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
