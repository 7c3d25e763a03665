"""Load and run a tiny configuration of each tested image classifier of transformers."""

import json
import tempfile
from pathlib import Path

from foveate.core.errors import FoveateError
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.registry import loader_for
from foveate.models.runners.image import TorchRunner
from loadtests.reach.architectures import ELASTIC, OPAQUE, classifier, processor
from loadtests.reach.attempt import Attempt


def try_all() -> list[Attempt]:
    """One attempt for each architecture. Those that this version of transformers lacks are refused."""
    return [_attempt(name) for name in sorted(ELASTIC | OPAQUE)]


def _attempt(name: str) -> Attempt:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        try:
            classifier(name).save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(processor()))
            options = LoadOptions("fp32", "cpu", 1, 1)
            runner = loader_for(str(folder)).load(str(folder), options, warm_ladder=False)
        except AttributeError as error:
            return Attempt(name, "transformers", "refused", reason=str(error))
        except FoveateError as error:
            return Attempt(name, "transformers", "refused", reason=error.detail.replace(parent, ""))
        kind = "elastic" if isinstance(runner, TorchRunner) else "opaque"
        return Attempt(name, "transformers", kind, runner.card.task, runner.full.image_size)
