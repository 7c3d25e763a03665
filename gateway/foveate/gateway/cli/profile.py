"""`foveate profile`: measure the plans of a model with a progress bar, and show the ladder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec, ModelCard
from foveate.core.plan import Plan
from foveate.core.profile import GFLOPS_MARGIN, PlanSearch, Profile
from foveate.gateway.cli.terminal import printable
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes.video_input import center_crop
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.loading.profile_store import profile_path
from foveate.models.profiling import dataset, ladder_plot
from foveate.models.profiling.budget import parse_budget
from foveate.models.profiling.chat_profile import chat_plans, measure_chat
from foveate.models.profiling.dataset import Dataset, DecodedDataset, DecodeMedia
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob, ReportStage, partial_path
from foveate.models.profiling.question_set import DecodedQuestions, question_folder, shipped_questions
from foveate.models.profiling.searching import parse_shares, set_uniform_schedules
from foveate.models.runners.base import ModelRunner, Pixels
from foveate.models.runners.candidates import parse_plans
from foveate.models.runners.image import TorchRunner
from foveate.models.vlm.runner import ChatRunner
from foveate.models.zoo.heldout import heldout, heldout_clips, heldout_questions

TIMED_BATCH_SIZES = (1, 4, 8)
"""Batch sizes that are timed by default, besides the largest batch of the runner."""
MAX_BATCH_SIZE = 1024
"""Largest batch that is timed: all of its images are in memory at once."""
REFRESH_INTERVAL_S = 0.2
"""Shortest time between two refreshes of the progress bars."""


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """The options of the command."""

    model: str
    data: Path | None = None
    """A folder of class folders, of images, or of questions; None: the shipped media."""
    plans: str | None = None
    """Plans separated by commas; None: all that the model supports."""
    batch_sizes: str | None = None
    """Numbers separated by commas; None: 1, 4, 8 and the largest batch of the runner."""
    rounds: int = 7
    limit: int = 0
    """Most images; 0: all."""
    seed: int = 0
    diffrate: str | None = None
    """Shares of full's GFLOPs, separated by commas, to search DiffRate schedules for."""
    out: Path | None = None
    budget: str | None = None
    """The time that measuring may take, as in ``10m``; None: no limit."""

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.out or profile_path(self.model)


def profile(
    options: ProfileOptions, model: UnprofiledModel[Any], max_pixels: int, progress_console: Console
) -> Profile:
    """Measure a model, with the progress on a console.

    Raises SetupError or BadPlan for options that do not fit the model. After a KeyboardInterrupt, the
    results so far are on disk.
    """
    if model.runner.card.task == "chat":
        return _profile_chat(options, model, max_pixels, progress_console)
    runner: ModelRunner = model.runner
    card = runner.card
    if card.input is None:
        raise SetupError(f"{card.name} takes no images, so there is no quality to measure")
    target = options.target  # a user without a home folder has none: say so before anything is measured
    sizes, shares = _batch_sizes(options, runner.max_batch), parse_shares(options.diffrate)
    if shares and card.task == "embed":
        raise SetupError(f"{card.name} has no classes to search token schedules by: leave out --diffrate")
    if isinstance(runner, TorchRunner):
        set_uniform_schedules(runner, shares)
    elif shares:
        raise SetupError(f"{card.name} has no token schedules: leave out --diffrate")
    budget_s = parse_budget(options.budget)
    # Plans that the user names are all measured, as long as there is time.
    screened = options.plans is None or budget_s is not None
    plans = _plans(options, runner)
    job = ProfilingJob(plans, sizes, options.rounds, options.seed, shares, screened, budget_s)
    sample = _dataset(options, card).sample(options.limit, options.seed)
    decode, decoder_of = decoder(card, max_pixels), partial(decoder, card, max_pixels)
    with progress_bars(progress_console) as report:
        reading = partial(report, "reading", "reading images")
        images = DecodedDataset(sample, decode, reading, None if card.frames else decoder_of)
        for sentence in images.refusals:
            progress_console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)
        return measure(model, images, job, target, report)


def _profile_chat(
    options: ProfileOptions, model: UnprofiledModel[ChatRunner], max_pixels: int, progress_console: Console
) -> Profile:
    """As `profile`, for a model that answers questions about pictures."""
    runner, target = model.runner, options.target
    if options.diffrate is not None:
        raise SetupError(f"{runner.card.name} has no token schedules: leave out --diffrate")
    slots = runner.cache.free_slots
    sizes = _batch_sizes(options, slots)
    if sizes[-1] > slots:
        raise SetupError(f"{runner.card.name} answers at most {slots} questions at once, not {sizes[-1]}")
    plans = chat_plans(runner)
    if options.plans is not None:
        plans = parse_plans(options.plans, runner.full, runner.check)
    budget_s = parse_budget(options.budget)
    job = ProfilingJob(plans, sizes, options.rounds, options.seed, budget_s=budget_s)
    source = shipped_questions(heldout_questions()) if options.data is None else question_folder(options.data)
    source = source.sample(options.limit, options.seed)
    with progress_bars(progress_console) as report:
        reading = partial(report, "reading", "reading images")
        images = DecodedDataset(source.pictures, decoder(runner.card, max_pixels), reading)
        for sentence in images.refusals:
            progress_console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)
        return measure_chat(model, DecodedQuestions(source, images), job, target, report)


def decoder(card: ModelCard, max_pixels: int, side: int = 0) -> DecodeMedia:
    """Decodes media as the server does for this model. A dense model gets the whole image, squashed.

    side: in pixels; 0: full's image size.
    """
    spec, side = card.input or InputSpec(), side or card.full.image_size
    if card.task == "segment":
        spec = replace(spec, crop_mode="squash", crop_pct=1.0)
    if not card.frames:
        return partial(decode_image, spec=spec, size=side, max_pixels=max_pixels)

    def decode(data: bytes) -> Pixels:
        limits = ClipLimits()
        video = decode_clip(data, card.frames, side, center_crop(spec, side), spec.interpolation, limits)
        pixels: Pixels = video.pixels[0]
        return pixels

    return decode


def resume_hint(options: ProfileOptions) -> str:
    """What to print after an interruption: where the results are, and how to resume."""
    unfinished = partial_path(options.target)
    if not unfinished.exists():
        return "interrupted; nothing was measured yet"
    return f"interrupted; the results so far are in {unfinished}, and the same command goes on from there"


def show(console: Console, profile: Profile, target: Path) -> None:
    """Print the ladder and what was dropped as tables, plot the ladder, and print what was written."""
    console.print(_table(profile))
    _show_timing(console, profile)
    if profile.search is not None and profile.search.tried > 1:
        _show_search(console, profile.search)
    written = [str(target), *_plot(console, profile, target)]
    console.print(f"written: {', '.join(written)}", highlight=False, markup=False, soft_wrap=True)


def _show_timing(console: Console, profile: Profile) -> None:
    """What the columns of the latencies mean, and how many plans have none."""
    if not profile.full.latency_s:
        console.print("nothing was timed, so the ladder goes by GFLOPs", highlight=False)
        return
    largest = max(profile.full.latency_s)
    until = ", up to the first tokens of the answers" if profile.full.chat else ""
    console.print(
        f"ms/{largest}: milliseconds of a batch of {largest}{until}, from which the speed-up is computed",
        highlight=False,
    )
    untimed = sum(not m.latency_s for m in profile.measurements) - _late_plans(profile)
    if untimed > 0:
        console.print(
            f"{untimed} plan(s) were not timed: others are as good for over {GFLOPS_MARGIN:.0%} less GFLOPs",
            highlight=False,
        )


def _late_plans(profile: Profile) -> int:
    """Plans whose quality was measured, and for whose timing there was no time."""
    families = profile.search.families if profile.search else ()
    return sum(family.count for family in families if family.stage == "latency")


def _show_search(console: Console, search: PlanSearch) -> None:
    """How many plans were tried, and which were dropped when and why."""
    console.print(f"{search.tried} plans tried, {search.dropped} dropped", highlight=False)
    if search.families:
        table = Table(Column("dropped", no_wrap=True), box=None, pad_edge=False)
        table.add_column("plans", justify="right")
        table.add_column("when")
        table.add_column("why")
        for family in search.families:
            why = f"{family.reason}, as {family.better}" if family.better else family.reason
            table.add_row(family.plans, str(family.count), family.stage, why)
        console.print(table)
    if not search.within_budget:
        console.print(
            "the budget left no time for some plans: the same command goes on with another --budget",
            highlight=False,
            soft_wrap=True,
        )


def _plot(console: Console, profile: Profile, target: Path) -> list[str]:
    """The plots that were written; none, and a hint, if Matplotlib is not installed."""
    stem = target.with_name(target.name.removesuffix(".json").removesuffix(".profile") + ".profile")
    try:
        return [str(path) for path in ladder_plot.draw(profile, stem)]
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        console.print("pip install 'foveate\\[profile]' lets this command draw the ladder too")
        return []


def _table(profile: Profile) -> Table:
    """The rungs, and below them the plans with a baseline reducer or method, cheapest first."""
    sizes = sorted(profile.full.latency_s)
    table = Table(Column("plan", no_wrap=True), box=None, pad_edge=False)
    scores = ["worst kind", "exact match"] if profile.full.chat else ["top-1"]
    for name in ("quality", *scores, "GFLOPs", *(f"ms/{size}" for size in sizes), "speed-up"):
        table.add_column(name, justify="right")
    compared = sorted((m for m in profile.measurements if m.baseline), key=lambda m: m.gflops)
    for m in (*profile.ladder, *compared):
        table.add_row(
            f"{m.plan} (baseline)" if m.baseline else m.plan,
            f"{m.quality:.3f}",
            *([f"{m.chat.worst_quality:.3f} ({escape(printable(m.chat.worst_kind))})"] if m.chat else ()),
            "" if m.accuracy is None else f"{m.accuracy:.1%}",
            f"{m.gflops:.3f}" if m.gflops else "",
            *(f"{1e3 * m.latency_s[size]:.2f}" if m.latency_s else "" for size in sizes),
            f"{(profile.full.seconds or 0) / m.seconds:.2f}x" if m.seconds else "",
        )
    return table


def _dataset(options: ProfileOptions, card: ModelCard) -> Dataset:
    """The user's folder, else the shipped media. Raises SetupError if those show other classes."""
    if card.task == "embed":
        if options.data is None:
            raise SetupError(
                f"{card.name} makes embeddings: pass --data DIR, a folder of images to compare them on"
            )
        return dataset.image_folder(options.data)
    if options.data is not None and card.task == "segment":
        return dataset.mask_folders(options.data)
    if options.data is not None:
        return dataset.class_folders(options.data, card.labels)
    if card.frames:
        videos = heldout_clips()
        if card.labels != (videos.motions if card.task == "classify" else videos.labels):
            raise SetupError(
                f"the shipped clips do not show the classes of {card.name}: pass --data DIR with clips"
            )
        return dataset.shipped_videos(videos)
    scenes = heldout()
    if scenes.labels != card.labels:
        raise SetupError(
            f"the shipped images do not show the classes of {card.name}: pass --data DIR, "
            "a folder with a folder of images for each class, or with images alone"
        )
    return dataset.shipped_scenes(scenes)


def _plans(options: ProfileOptions, runner: ModelRunner) -> tuple[Plan, ...]:
    if options.plans is not None:
        return parse_plans(options.plans, runner.full, runner.check)
    return runner.candidates()


def _batch_sizes(options: ProfileOptions, max_batch: int) -> tuple[int, ...]:
    if options.batch_sizes is None:
        return tuple(sorted({size for size in TIMED_BATCH_SIZES if size < max_batch} | {max_batch}))
    parts = [part.strip() for part in options.batch_sizes.split(",")]
    sizes = {int(part) for part in parts if part.isdecimal() and len(part) <= len(str(MAX_BATCH_SIZE))}
    if len(sizes) != len(parts) or min(sizes) < 1 or max(sizes) > MAX_BATCH_SIZE:
        raise SetupError(
            f"batch sizes are different numbers from 1 to {MAX_BATCH_SIZE}, as in 1,4,8; "
            f"not {options.batch_sizes[:80]}"
        )
    return tuple(sorted(sizes))


@contextmanager
def progress_bars(console: Console) -> Iterator[ReportStage]:
    """A progress bar for each stage.

    The bars are refreshed between two steps. A refresh thread would take CPU time from the plan that is
    being timed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bars, refreshed = {}, 0.0

        def report(stage: str, step: str, done: int, total: int) -> None:
            nonlocal refreshed
            if stage not in bars:
                bars[stage] = progress.add_task(step, total=total)
            progress.update(bars[stage], description=step, completed=done, total=total)
            if time.monotonic() - refreshed > REFRESH_INTERVAL_S:
                progress.refresh()
                refreshed = time.monotonic()

        yield report
