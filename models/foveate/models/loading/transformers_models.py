"""Load models of the transformers library by name or folder."""

from collections.abc import Sequence

from foveate.core.errors import SetupError
from foveate.models import huggingface
from foveate.models.huggingface import PretrainedRunner
from foveate.models.loading.loader import (
    DEFAULT_OPTIONS,
    LoadOptions,
    UnprofiledModel,
    fetch,
    is_single,
    start,
)
from foveate.models.loading.opaque_models import OPAQUE, family
from foveate.models.loading.profile_store import find_profile, weights_digest
from foveate.models.loading.warmup import run_once
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.opaque.transformers_classifiers import opaque
from foveate.models.weights.local_files import check_no_options


class TransformersLoader:
    """Loads image classifiers, segmenters and video classifiers that run in transformers."""

    def accepts(self, name: str) -> bool:
        """Whether the name is that of one transformers model: `org/name`, `hf:name`, or a folder."""
        return is_single(name) and huggingface.is_transformers_name(name)

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> PretrainedRunner | OpaqueRunner:
        """Load a model with its profile."""
        check_no_options(name, options.stated(name))
        model = huggingface.load(name)
        if huggingface.is_image_classifier(model):
            return OPAQUE.load_family(name, family(opaque(model), ()), options, warm_ladder)
        fetched = fetch(name, options, lambda _: model)
        profile = find_profile(name, model, fetched.setting)
        runner = huggingface.runner(model, fetched.precision, fetched.device, options.max_batch, profile)
        start(name, runner, warm_ladder)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[PretrainedRunner] | UnprofiledModel[OpaqueRunner]:
        """Load a model without a profile. Raises SetupError for siblings: such a model has none."""
        check_no_options(name, options.stated(name))
        model = huggingface.load(name)
        if huggingface.is_image_classifier(model):
            return OPAQUE.unprofiled(name, family(opaque(model), siblings), options)
        if siblings:
            raise SetupError(
                f"{name} is not an image classifier, so no other model can answer in its name: "
                "leave out --with"
            )
        fetched = fetch(name, options, lambda _: model)
        weights = weights_digest(model)  # before the runner changes the precision of the weights
        runner = huggingface.runner(model, fetched.precision, fetched.device, options.max_batch)
        run_once(runner)
        return UnprofiledModel(runner, weights)
