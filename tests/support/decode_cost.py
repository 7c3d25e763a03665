"""What decoding a file costs, measured in a process of its own."""

import multiprocessing
import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from foveate.core.errors import FoveateError
from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image, silence_decoder_warnings
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits

MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class DecodeCost:
    """The answer to a file, and its cost."""

    status: int
    """200, or the status of the error."""
    detail: str
    mebibytes: float
    """Growth of the resident memory at its peak."""
    cpu_s: float


def decode_costs(files: Sequence[bytes], clips: bool = False) -> list[DecodeCost]:
    """What each file costs, in a fresh process each. Linux only."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        return list(pool.map(_cost, files, [clips] * len(files)))


def _cost(data: bytes, clip: bool) -> DecodeCost:
    silence_decoder_warnings()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which the transfer of the file raised
    before, started = _memory("VmRSS"), _cpu_s()
    status, detail = 200, ""
    try:
        if clip:
            decode_clip(data, 2, 32, lambda size: [(0, 0, *size)], "bilinear", ClipLimits())
        else:
            decode_image(data, InputSpec(0.875), 32, MAX_PIXELS)
    except FoveateError as error:
        status, detail = error.status, error.detail
    return DecodeCost(status, detail, _memory("VmHWM") - before, _cpu_s() - started)


def _memory(field: str) -> float:
    """A field of this process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
