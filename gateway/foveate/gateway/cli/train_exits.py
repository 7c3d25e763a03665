"""`foveate train-exits`: train exit heads and gates for a checkpoint, with progress, and report on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foveate.core.errors import SetupError
from foveate.gateway.cli.profile import decoder, progress_bars
from foveate.models.distillation.fit import FitProgress
from foveate.models.distillation.parts import Agreement
from foveate.models.distillation.train import HeadTrainingJob, partial_training, plan_heads, train_heads
from foveate.models.loading.load import fetch_untrained
from foveate.models.loading.loader import FetchedModel, LoadOptions, members_of
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.loading.profile_store import exits_path
from foveate.models.loading.registry import loader_for
from foveate.models.own.source import is_own
from foveate.models.profiling.budget import parse_budget
from foveate.models.profiling.dataset import DecodedDataset, image_folder
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.not_elastic import NotElastic


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of the command."""

    model: str
    data: Path
    """A folder of images. Their labels are not needed."""
    out: Path | None = None
    budget: str = "30m"
    limit: int = 0
    """Most images; 0: all."""
    seed: int = 0

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.out or exits_path(self.model)


def train_exits(
    options: TrainOptions, load_options: LoadOptions, max_pixels: int, progress_console: Console
) -> Sequence[Agreement]:
    """Train what the checkpoint lacks, with the progress on a console.

    Raises SetupError, one sentence, for a model or images that do not suit. After a KeyboardInterrupt, the
    same command resumes.
    """
    budget_s = parse_budget(options.budget) or 0.0
    if load_options.precision == "fp16":
        raise SetupError("exits are trained in fp32 or bf16, not in fp16: pass --precision bf16")
    if is_own(options.model) or not isinstance(loader_for(options.model), ElasticOrOpaqueLoader):
        raise SetupError(
            f"{options.model} does not run in the elastic trunk, so no exits can be trained for it"
        )
    if len(members_of(options.model)) > 1:
        raise SetupError(f"{options.model} is a list: exits are trained for one model at a time")
    target = options.target
    if target.exists():
        raise SetupError(f"{target} holds trained exits already: remove it to train again, or pass --out")
    dataset = image_folder(options.data).sample(options.limit, options.seed)
    fetched, weights = _fetch(options.model, load_options)
    checkpoint = fetched.model
    progress_console.print(description(checkpoint), highlight=False, markup=False, soft_wrap=True)
    card = TorchRunner(checkpoint, "fp32", "cpu", 1).card
    with progress_bars(progress_console) as report:
        decode = decoder(card, max_pixels)
        images = DecodedDataset(dataset, decode, partial(report, "reading", "reading images"))
        for sentence in images.refusals:
            progress_console.print(sentence, highlight=False, markup=False, soft_wrap=True)

        def report_step(part: str, progress: FitProgress) -> None:
            step = f"{part}: step {progress.step}, loss {progress.loss:.3f}"
            report(part, step, round(1000 * progress.share), 1000)

        half = fetched.precision != "fp32"
        job = HeadTrainingJob(checkpoint, weights, images, budget_s, fetched.device, half, seed=options.seed)
        return train_heads(job, target, report_step)


def _fetch(name: str, load_options: LoadOptions) -> tuple[FetchedModel[Checkpoint], str]:
    """As `fetch_untrained`. Raises SetupError for a network that only runs as it is."""
    try:
        return fetch_untrained(name, load_options)
    except NotElastic as reason:
        raise SetupError(f"no exits can be trained for {name}: {reason.detail}") from None


def description(checkpoint: Checkpoint) -> str:
    """What will be trained, as a sentence. Raises SetupError if there is nothing to train."""
    planned = plan_heads(checkpoint)
    parts = []
    if planned.exits:
        parts.append(f"exit heads after blocks {', '.join(str(spec.after) for spec in planned.exits)}")
    if planned.gates:
        parts.append(f"token gates after blocks {', '.join(map(str, planned.gates))}")
    what = " and ".join(parts) or "the patch readers of the dense head, which DToP uses"
    return f"training {what} of {checkpoint.name}, on its own answers; the trunk stays as it is"


def resume_hint(options: TrainOptions) -> str:
    """What to print after an interruption."""
    unfinished = partial_training(options.target)
    if not unfinished.exists():
        return "interrupted; nothing was trained yet"
    return f"interrupted; the training so far is in {unfinished}, and the same command goes on from there"


def show(console: Console, agreements: Sequence[Agreement], options: TrainOptions) -> None:
    """Print the agreement of each part with full, beside that of a trivial baseline, and what comes next."""
    table = Table("trained", box=None, pad_edge=False)
    for name in ("agreement with full", "baseline"):
        table.add_column(name, justify="right")
    table.add_column("baseline is")
    for row in agreements:
        table.add_row(row.name, f"{row.agreement:.1%}", f"{row.baseline:.1%}", row.baseline_name)
    console.print(table)
    console.print(
        f"written: {options.target}; foveate profile {options.model} measures plans with it",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
