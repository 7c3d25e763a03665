"""Load video models: classifiers of video clips, and dense models that segment videos."""

from collections.abc import Sequence

from foveate.core.errors import SetupError
from foveate.core.profile import Profile
from foveate.models import zoo
from foveate.models.loading.load import fetch_checkpoint
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    FetchedModel,
    LoadOptions,
    UnprofiledModel,
    start,
)
from foveate.models.loading.profile_store import find_profile, weights_digest
from foveate.models.loading.warmup import run_once
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint, card_of
from foveate.models.weights.local_files import canonical_name, is_local, weights_path
from foveate.models.zoo import CheckpointCard

VideoRunner = ClipRunner | ClipSegmenter


class VideoModelLoader:
    """Loads the models whose input is a video."""

    def accepts(self, name: str) -> bool:
        """Whether the model is a video classifier, or a shipped dense model with `-clip` in its name."""
        if name in zoo.names():
            return zoo.card(name).clip is not None
        if is_local(name):
            card = _card_of(name)
            return card is not None and card.clip is not None
        shipped = name.removesuffix(hub.CLIPS)
        return name.endswith(hub.CLIPS) and shipped in zoo.names() and zoo.card(shipped).dense is not None

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> VideoRunner:
        """Load a model with its profile."""
        fetched = fetch_checkpoint(name, options)
        profile = find_profile(canonical_name(name), fetched.model, fetched.setting)
        runner = _runner(fetched, options.max_batch, profile)
        start(name, runner, warm_ladder)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[VideoRunner]:
        """Load a model without a profile. Raises SetupError for siblings: a video model has none."""
        if siblings:
            raise SetupError(f"{name} takes clips, and no other model answers in its name: leave out --with")
        fetched = fetch_checkpoint(name, options)
        weights = weights_digest(fetched.model)  # before the runner changes the precision of the weights
        runner = _runner(fetched, options.max_batch, None)
        run_once(runner)
        return UnprofiledModel(runner, weights)


def _card_of(name: str) -> CheckpointCard | None:
    """The card in the metadata of local weights; None where there are none, which loading them reports."""
    try:
        return card_of(weights_path(name))
    except SetupError:
        return None


def _runner(fetched: FetchedModel[Checkpoint], max_batch: int, profile: Profile | None) -> VideoRunner:
    kind = ClipSegmenter if fetched.model.clip is None else ClipRunner
    return kind(fetched.model, fetched.precision, fetched.device, max_batch, profile)
