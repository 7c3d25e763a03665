"""Measure a model's plans from the command line: progress while it runs, the ladder and its picture after."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec, ModelCard
from foveate.core.plan import Plan
from foveate.core.profile import GFLOPS_MARGIN, Profile
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes.video_input import center_crop
from foveate.models.huggingface import PretrainedRunner
from foveate.models.loading.clip_loading import Unprofiled as UnprofiledClips
from foveate.models.loading.clip_loading import Watches
from foveate.models.loading.load import Unprofiled, profile_path
from foveate.models.loading.transformers_models import Unprofiled as UnprofiledPretrained
from foveate.models.profiling import dataset, ladder_plot
from foveate.models.profiling.candidates import candidates, of_clips, parse
from foveate.models.profiling.dataset import Dataset, Decode, DecodedDataset
from foveate.models.profiling.profile import Job, Watch, measure, partial_of
from foveate.models.profiling.searching import even_schedules, shares_of
from foveate.models.runners.base import Pixels
from foveate.models.runners.image import TorchRunner
from foveate.models.zoo.heldout import heldout, heldout_clips

Loaded = Unprofiled | UnprofiledPretrained | UnprofiledClips
BATCH_SIZES = (1, 4, 8)
REDRAWN_S = 0.2
"""How often the bars are drawn at most."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What the command line asks for."""

    model: str
    data: Path | None = None
    """A folder of class folders or of pictures; None: the shipped scenes."""
    plans: str | None = None
    """Plans with commas between them; None: those worth trying."""
    batch_sizes: str | None = None
    """Numbers with commas between them; None: 1, 4, 8 and the largest that the server makes."""
    rounds: int = 7
    limit: int = 0
    """Pictures at most; 0: all."""
    seed: int = 0
    diffrate: str | None = None
    """Shares of full's GFLOPs, with commas between them, to search DiffRate schedules for."""
    out: Path | None = None

    @property
    def target(self) -> Path:
        return self.out or profile_path(self.model)


def profile(asked: ProfileOptions, loaded: Loaded, max_pixels: int, complaints: Console) -> Profile:
    """Measure as asked, progress going to `complaints`.

    Raises SetupError and BadPlan with one sentence; KeyboardInterrupt leaves what is known on the disk.
    """
    runner = loaded.runner
    card = runner.card
    if not card.labels or card.input is None:
        raise SetupError(f"{card.name} has no classifier, so there is no quality to measure")
    sizes, shares = _batch_sizes(asked, runner.max_batch), shares_of(asked.diffrate)
    if isinstance(runner, TorchRunner):
        even_schedules(runner, shares)
    elif shares:
        raise SetupError(f"{card.name} goes by no schedules of tokens")
    job = Job(_plans(asked, runner), sizes, asked.rounds, asked.seed, shares)
    sampled = _pictures(asked, card).sample(asked.limit, asked.seed)
    decode = decoder(card, max_pixels)
    with _progress(complaints) as watch:
        album = DecodedDataset(sampled, decode, partial(watch, "reading", "reading pictures"))
        if album.left_out:
            complaints.print(f"{album.left_out} file(s) cannot be read as pictures and are left out")
        return measure(loaded, album, job, asked.target, watch)


def decoder(card: ModelCard, max_pixels: int) -> Decode:
    """As the server decodes what this model is fed. What names pixels sees all of a picture at once."""
    spec, side = card.input or InputSpec(), card.full.image_size
    if card.task == "segment":
        spec = replace(spec, crop_mode="squash", crop_pct=1.0)
    if not card.frames:
        return partial(decode_image, spec=spec, size=side, max_pixels=max_pixels)

    def decode(data: bytes) -> Pixels:
        limits = ClipLimits()
        clip = decode_clip(data, card.frames, side, center_crop(spec, side), spec.interpolation, limits)
        pixels: Pixels = clip.pixels[0]
        return pixels

    return decode


def how_to_go_on(asked: ProfileOptions) -> str:
    """What to tell whoever interrupted."""
    kept = partial_of(asked.target)
    known = f"what is known lies in {kept}, and the same command goes on from there"
    return f"interrupted; {known if kept.exists() else 'nothing was measured yet'}"


def show(console: Console, found: Profile, target: Path) -> None:
    """The ladder as a table, and where it was written and drawn."""
    console.print(_table(found))
    largest = max(found.full.latency_s)
    console.print(
        f"ms/{largest}: milliseconds a batch of {largest}, by which the speed-up goes", highlight=False
    )
    untimed = sum(not m.latency_s for m in found.measurements)
    if untimed:
        console.print(
            f"{untimed} plan(s) were not timed: others keep as much for over {GFLOPS_MARGIN:.0%} less GFLOPs",
            highlight=False,
        )
    written = [str(target), *_draw(console, found, target)]
    console.print(f"written: {', '.join(written)}", highlight=False, markup=False, soft_wrap=True)


def _draw(console: Console, found: Profile, target: Path) -> list[str]:
    stem = target.with_name(target.name.removesuffix(".json").removesuffix(".profile") + ".profile")
    try:
        return [str(path) for path in ladder_plot.draw(found, stem)]
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        console.print("pip install 'foveate\\[profile]' lets this command draw the ladder too")
        return []


def _table(found: Profile) -> Table:
    sizes = sorted(found.full.latency_s)
    table = Table(Column("plan", no_wrap=True), box=None, pad_edge=False)
    for name in ("quality", "top-1", "GFLOPs", *(f"ms/{size}" for size in sizes), "speed-up"):
        table.add_column(name, justify="right")
    for m in found.ladder:
        table.add_row(
            m.plan,
            f"{m.quality:.3f}",
            "" if m.accuracy is None else f"{m.accuracy:.1%}",
            f"{m.gflops:.3f}",
            *(f"{1e3 * m.latency_s[size]:.2f}" for size in sizes),
            f"{(found.full.seconds or 0) / (m.seconds or 1):.2f}x",
        )
    return table


def _pictures(asked: ProfileOptions, card: ModelCard) -> Dataset:
    if asked.data is not None and card.task == "segment":
        return dataset.outlined(asked.data)
    if asked.data is not None:
        return dataset.folder(asked.data, card.labels)
    if card.frames:
        clips = heldout_clips()
        if card.labels != (clips.motions if card.task == "classify" else clips.labels):
            raise SetupError(
                f"the clips that are shipped do not show the classes of {card.name}: pass --data DIR"
            )
        return dataset.clips(clips)
    shipped = heldout()
    if shipped.labels != card.labels:
        raise SetupError(
            f"the pictures that are shipped do not show the classes of {card.name}: pass --data DIR, "
            "a folder with a folder of pictures for each class, or with pictures alone"
        )
    return dataset.scenes(shipped)


def _plans(asked: ProfileOptions, runner: TorchRunner | PretrainedRunner | Watches) -> tuple[Plan, ...]:
    if asked.plans is not None:
        return parse(asked.plans, runner.full, runner.check)
    if isinstance(runner, PretrainedRunner):
        return runner.candidates()
    if not isinstance(runner, TorchRunner):
        return of_clips(runner.full, runner.card.frames, runner.card.task, runner.check)
    siblings = [
        Plan(name, model.config.image_size, runner.full.precision)
        for name, model in runner.models.items()
        if name != runner.full.variant
    ]
    return candidates(runner.models[runner.full.variant], runner.full, runner.check, siblings)


def _batch_sizes(asked: ProfileOptions, largest: int) -> tuple[int, ...]:
    if asked.batch_sizes is None:
        return tuple(sorted({size for size in BATCH_SIZES if size < largest} | {largest}))
    sizes = {int(part) for part in asked.batch_sizes.split(",") if part.strip().isdecimal()}
    if len(sizes) != len(asked.batch_sizes.split(",")) or 0 in sizes:
        raise SetupError(f"batch sizes are different numbers from 1, as in 1,4,8; not {asked.batch_sizes}")
    return tuple(sorted(sizes))


@contextmanager
def _progress(complaints: Console) -> Iterator[Watch]:
    """A bar for each stage, as they begin. It is drawn between two steps, for a thread of its own would
    take the processor from what is being timed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=complaints, auto_refresh=False) as progress:
        bars, drawn = {}, 0.0

        def watch(stage: str, what: str, done: int, total: int) -> None:
            nonlocal drawn
            if stage not in bars:
                bars[stage] = progress.add_task(what, total=total)
            progress.update(bars[stage], description=what, completed=done, total=total)
            if time.monotonic() - drawn > REDRAWN_S:
                progress.refresh()
                drawn = time.monotonic()

        yield watch
