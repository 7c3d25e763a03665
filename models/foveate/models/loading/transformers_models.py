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
    start,
)
from foveate.models.loading.profile_store import find_profile, weights_digest
from foveate.models.loading.warmup import run_once
from foveate.models.weights.local_files import check_no_options


class TransformersLoader:
    """Loads segmenters and video classifiers that run in transformers."""

    def accepts(self, name: str) -> bool:
        """Whether the name is that of a transformers model: `org/name`, `hf:name`, or a folder."""
        return huggingface.is_transformers_name(name)

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> PretrainedRunner:
        """Load a model with its profile."""
        check_no_options(name, options.stated(name))
        fetched = fetch(name, options, huggingface.load)
        profile = find_profile(name, fetched.model, fetched.setting)
        runner = huggingface.runner(
            fetched.model, fetched.precision, fetched.device, options.max_batch, profile
        )
        start(name, runner, warm_ladder)
        return runner

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[PretrainedRunner]:
        """Load a model without a profile. Raises SetupError for siblings: such a model has none."""
        if siblings:
            raise SetupError(
                f"{name} runs in transformers, where no other model answers in its name: leave out --with"
            )
        check_no_options(name, options.stated(name))
        fetched = fetch(name, options, huggingface.load)
        weights = weights_digest(fetched.model)  # before the runner changes the precision of the weights
        runner = huggingface.runner(fetched.model, fetched.precision, fetched.device, options.max_batch)
        run_once(runner)
        return UnprofiledModel(runner, weights)
