"""Load image models: shipped ones, timm models by name, and files of weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path

from foveate.core.default_models import PHOTO_NAMES
from foveate.core.errors import SetupError
from foveate.core.profile import MeasurementEnvironment, Profile
from foveate.models import huggingface, zoo
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    FetchedModel,
    LoadOptions,
    UnprofiledModel,
    fetch,
    members_of,
    start,
    warm_up,
)
from foveate.models.loading.profile_store import (
    exits_path,
    find_profile,
    matching_profiles,
    sibling_digests,
    warn_of_mismatch,
    weights_digest,
    with_valid_latencies,
)
from foveate.models.loading.text_towers import text_runner
from foveate.models.loading.warmup import run_once
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.point_prompts import CLICKS, read_clicks
from foveate.models.runners.video_segmenter import ClipSegmenter
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import STITCHES, Family, read_stitches
from foveate.models.weights.local_files import canonical_name
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.state_dict import SUFFIXES, stem_of
from foveate.models.weights.trained_heads import read_heads
from foveate.models.weights.transformers_hub import is_trunk_repository


class ImageModelLoader:
    """Loads models of images, with their siblings, stitches, click heads and text towers."""

    def accepts(self, name: str) -> bool:
        """Every name: `load` raises SetupError for one that does not exist."""
        return True

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> TorchRunner:
        """Load a model, its siblings, and its companions for clicks, videos and labels.

        Raises NotElastic where the elastic trunk does not represent the model or a sibling.
        """
        own, *siblings = members_of(name)
        fetched = _fetch_elastic(own, siblings, options)
        name, checkpoint = canonical_name(own), fetched.model
        profile, members = find_family_profile(name, checkpoint, fetched.setting, siblings)
        if profile is not None:
            checkpoint.model.schedules = profile.schedules
        # All digests are taken before a runner changes the precision of the weights.
        video = _video_variant(name, fetched) if checkpoint.dense else None
        runner = TorchRunner(members, fetched.precision, fetched.device, options.max_batch, profile)
        if video is not None:
            model, video_profile = video
            companion = ClipSegmenter(
                model, fetched.precision, fetched.device, options.max_batch, video_profile
            )
            runner.submodels = (*runner.submodels, companion)
            runner.card = replace(runner.card, clip_model=companion.card.name)
        labels = text_runner(name, checkpoint, fetched.device, options.max_batch)
        if labels is not None:
            runner.submodels = (*runner.submodels, labels)
            runner.card = replace(runner.card, zero_shot=labels.zero_shot)
        start(name, runner, warm_ladder, runner.content_plans)
        for submodel in runner.submodels if warm_ladder else ():
            # A click head is so small that a second thread costs more than it saves.
            threads = (1,) if submodel.card.task == "clicks" else ()
            warm_up(submodel, submodel.card.weights or runner.card.weights, threads)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[TorchRunner]:
        """Load a model with the siblings that are to be measured with it. Raises as `load` does."""
        own, *listed = members_of(name)
        siblings = (*listed, *siblings)
        fetched = _fetch_elastic(own, siblings, options)
        members = family(canonical_name(own), fetched.model, siblings)
        # All digests are taken before the runner changes the precision of the weights.
        weights = weights_digest(fetched.model)
        digests = sibling_digests(members.siblings)
        runner = TorchRunner(members, fetched.precision, fetched.device, options.max_batch)
        run_once(runner)
        return UnprofiledModel(runner, weights, digests)


def _fetch_elastic(own: str, siblings: Sequence[str], options: LoadOptions) -> FetchedModel[Checkpoint]:
    """As `fetch_checkpoint`. Raises NotElastic if a member of the family does not run in the trunk."""
    if own in PHOTO_NAMES:
        raise NotElastic(f"{own} is a convolutional network")
    if siblings and huggingface.is_transformers_name(own):
        raise NotElastic(f"{own} runs in transformers")
    return fetch_checkpoint(own, options)


def fetch_checkpoint(name: str, options: LoadOptions) -> FetchedModel[Checkpoint]:
    """Read a checkpoint by name, with the exits trained for it, and choose its precision and device."""

    def read(name: str) -> Checkpoint:
        return _with_trained_heads(name, hub.load(name, options=options.stated(name)))

    return fetch(name, options, read, _precision_basis)


def fetch_untrained(name: str, options: LoadOptions) -> tuple[FetchedModel[Checkpoint], str]:
    """A checkpoint without the exits that were trained for it, to train them; and its digest."""
    fetched = fetch(name, options, partial(hub.load, options=options.stated(name)), _precision_basis)
    return fetched, weights_digest(fetched.model)


def _with_trained_heads(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the exits that lie beside its weights, or in the user's data folder."""
    try:
        path = exits_path(name)
    except SetupError:  # a user without a home folder has trained nothing
        return checkpoint
    return read_heads(path, checkpoint, weights_digest(checkpoint)) if path.is_file() else checkpoint


def _precision_basis(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """The model whose answers decide the precision: for a head on a shipped trunk, the trunk."""
    name = name.removesuffix(hub.CLIPS) if name not in zoo.names() else name
    trunk = zoo.card(name).trunk if name in zoo.names() else ""
    return hub.load(trunk) if trunk else checkpoint


def find_family_profile(
    name: str, checkpoint: Checkpoint, setting: MeasurementEnvironment, siblings: Sequence[str] = ()
) -> tuple[Profile | None, Family]:
    """The profile of a model, and the model with the siblings that it names, or with those that are listed.

    The profile is None if none matches the weights of all members. Raises SetupError for a profile that
    cannot be read.
    """
    listed = family(name, checkpoint, siblings)
    for profile, path in matching_profiles(name, checkpoint):
        members = listed if siblings else _profiled_family(name, checkpoint, profile, path)
        if sibling_digests(members.siblings) == profile.siblings:
            return with_valid_latencies(profile, setting, name, path), members
        warn_of_mismatch(name, path)
    return None, listed


def family(name: str, checkpoint: Checkpoint, siblings: Sequence[str] = ()) -> Family:
    """The model with its siblings, and with the stitches and the click head beside its weights."""
    members = tuple(hub.load(_sibling_name(name, sibling)) for sibling in siblings)
    stem = stem_of(name) if name.endswith(SUFFIXES) else str(zoo.shipped() / checkpoint.name)
    stitches, clicks = Path(f"{stem}.{STITCHES}"), Path(f"{stem}.{CLICKS}")
    return Family(
        checkpoint,
        members,
        read_stitches(stitches) if members and stitches.exists() else {},
        read_clicks(clicks, checkpoint, weights_digest(checkpoint)) if clicks.exists() else None,
    )


def _profiled_family(name: str, checkpoint: Checkpoint, profile: Profile, path: Traversable) -> Family:
    try:
        return family(name, checkpoint, tuple(profile.siblings))
    except SetupError as error:
        raise SetupError(f"the profile {path} names siblings that cannot be loaded: {error.detail}") from None


def _sibling_name(name: str, sibling: str) -> str:
    """What to load a sibling by.

    A profile names a file's siblings by the stem of a file beside it, and siblings on the hub by the name
    without the organisation.
    """
    if name.endswith(SUFFIXES):
        files = (Path(name).parent / f"{sibling}{suffix}" for suffix in SUFFIXES)
        return next((str(file) for file in files if file.is_file()), sibling)
    beside = f"{name.rpartition('/')[0]}/{sibling}"
    known = "/" not in sibling and is_trunk_repository(name) and is_trunk_repository(beside)
    return beside if known else sibling


def _video_variant(name: str, fetched: FetchedModel[Checkpoint]) -> tuple[Checkpoint, Profile | None]:
    """A dense model as the model that segments videos, and its profile."""
    video = replace(fetched.model, name=fetched.model.name + hub.CLIPS)
    return video, find_profile(name + hub.CLIPS, video, fetched.setting)
