"""Checkpoints of transformers from the hub or a folder. Only safetensors are read; no remote code runs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from foveate.core.class_labels import label_problem, labels_in_order
from foveate.core.errors import SetupError
from foveate.core.model import Task
from foveate.models import zoo
from foveate.models.weights.checkpoint import variant
from foveate.models.weights.description import CONFIG
from foveate.models.weights.hub_access import http_error, hub_access
from foveate.models.weights.json_file import read_table
from foveate.models.weights.local_files import (
    PREFIX,
    is_folder,
    is_local,
    may_run_in_trunk,
    runs_in_transformers,
)
from foveate.models.weights.preprocessing import Preprocessing, parse_preprocessing
from foveate.models.weights.stated_size import check_counts, limited_to, stored_size
from foveate.models.weights.timm_config import sentence
from foveate.models.weights.torchvision_operators import declare_missing_operators
from foveate.models.weights.transformers_hub import is_hub_name, is_trunk_repository, licence_of

SERVED = "image classifiers, segmenters (semantic or universal), and classifiers of videos"
"""The served kinds of models, for error messages."""
IMAGE, VIDEO = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING"
_HEADS: tuple[tuple[str, Task], ...] = (
    ("MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", "segment"),
    ("MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING", "segment"),
    (VIDEO, "classify"),
    (IMAGE, "classify"),
)
"""transformers' own tables of model classes, and their tasks."""
_PREPROCESSORS = (
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("processor_config.json", "image_processor"),
)
"""Files that can hold the preprocessing, and the entry of the file that holds it; None: the whole file."""
MAX_CLASSES = 255
"""An indexed PNG has 256 values, and 0 is the background."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A checkpoint of transformers: its model, float32 on the CPU, and its description."""

    name: str
    model: Any
    task: Task
    labels: tuple[str, ...]
    """Class names, without the background."""
    background: bool
    """Whether the model's class 0 is the background. Otherwise the model has no background."""
    preprocessing: Preprocessing
    video: bool = False
    """Whether the model takes videos."""
    multi_label: bool = False
    """Whether each class has a probability of its own."""
    description: str = ""
    licence: str = ""
    source: str = ""

    def table(self) -> Mapping[str, Any]:
        """Everything except the weights that answers depend on."""
        return {"config": self.model.config.to_json_string(), "pixels": asdict(self.preprocessing)}


def is_transformers_name(spec: str) -> bool:
    """Whether a name belongs to transformers: `org/name` on the hub, a folder, the weights file in a
    folder, or `hf:` before any of them. Models that the elastic trunk runs do not belong to it."""
    if is_local(spec.removeprefix(PREFIX)):
        return runs_in_transformers(spec.removeprefix(PREFIX))
    if is_trunk_repository(spec):
        return False
    return spec.startswith(PREFIX) or is_folder(spec) or is_hub_name(spec)


def is_image_classifier(pretrained: Pretrained) -> bool:
    """Whether the model classifies images: it then runs as an opaque network."""
    return pretrained.task == "classify" and not pretrained.video


def load(spec: str) -> Pretrained:
    """Load a checkpoint by name. Raises SetupError with one sentence when it cannot be loaded or served."""
    source = spec.removeprefix(PREFIX)
    if (runs_in_transformers(source) or may_run_in_trunk(source)) and not Path(source).is_dir():
        source = str(Path(source).parent)  # the weights file of a folder stands for the folder
    transformers = import_transformers(source)
    if Path(source).is_dir() and not (Path(source) / CONFIG).is_file():
        raise SetupError(f"there is no {CONFIG} in {source}, so it is no checkpoint of transformers")
    with access(source):
        return _load(transformers, source)


def access(source: str) -> AbstractContextManager[None]:
    """`hub_access` for `org/name`; nothing for a folder."""
    return nullcontext() if Path(source).is_dir() else hub_access(source)


def _load(transformers: Any, source: str) -> Pretrained:
    config = read_config(transformers, source)
    kind, task, video = _kind(transformers, config, source)
    _check_folder(Path(source))
    labels = _labels(config, source)
    background = task == "segment" and labels[0].casefold() == "background"
    if task == "segment" and len(labels) - background > MAX_CLASSES:
        raise SetupError(
            f"{source} has {len(labels)} classes; masks are indexed PNGs of at most {MAX_CLASSES} classes"
        )
    table, where = _preprocessor(source)
    # ViViT's preprocessor is the one that subtracts 1 where its table does not say it.
    preprocessing = parse_preprocessing(table, where, offset=config.model_type == "vivit")
    return Pretrained(
        name=variant(Path(source).resolve().name)[: zoo.MAX_NAME],
        model=read_weights(kind, config, source),
        task=task,
        labels=labels[1:] if background else labels,
        background=background,
        preprocessing=preprocessing,
        video=video,
        multi_label=_is_multi_label(config, source),
        description=f"{kind.__name__} of transformers",
        licence=_licence(source),
        source=source if Path(source).is_dir() else f"https://huggingface.co/{source}",
    )


def import_transformers(source: str) -> Any:
    """The transformers package. Raises SetupError where it is not installed."""
    declare_missing_operators()
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise SetupError(
                f"transformers does not import, because {error.name} is not installed"
            ) from error
        command = "pip install 'foveate[transformers]'"
        raise SetupError(f"{source} needs transformers, which is not installed: {command}") from None


def _check_folder(path: Path) -> None:
    """Raise SetupError for a folder without safetensors weights."""
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise SetupError(
            f"there is no .safetensors in {path}, and of this architecture no other format is read: load the "
            "model with transformers once, and write it with save_pretrained"
        )


def read_config(transformers: Any, source: str) -> Any:
    """transformers' configuration of the checkpoint. Raises SetupError where it cannot be read."""
    path = _file(source, CONFIG)
    table = {} if path is None else _table(path, source)
    check_counts(table, f"the config.json of {source}")
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, http_error()) as error:
        raise SetupError(f"the configuration of {source} cannot be loaded: {sentence(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, _config_error()) as error:
        if "auto_map" in table:
            raise SetupError(
                f"{source} runs on code of its own repository, as auto_map in its {CONFIG} says, and code of "
                "repositories is never run: write a class around it, and serve that with --model "
                "package.module:Class"
            ) from error
        raise SetupError(
            f"the configuration of {source} is not one that transformers {transformers.__version__} reads: "
            f"{sentence(error)}"
        ) from error


def _kind(transformers: Any, config: Any, source: str) -> tuple[Any, Task, bool]:
    """The model class that the checkpoint was saved from, its task, and whether it takes videos."""
    saved = getattr(config, "architectures", None) or ()
    saved = saved if isinstance(saved, list | tuple) else (saved,)
    for mapping, task in _HEADS:
        known = _load_class(getattr(transformers, mapping), config, source)
        # Perceiver has several classifiers of images.
        for kind in known if isinstance(known, tuple) else (known,):
            if kind is not None and (not saved or kind.__name__ in saved):
                return kind, task, mapping == VIDEO
    name = saved[0] if saved else config.model_type
    raise SetupError(f"{source} is a {name}, which is not served; of transformers these are served: {SERVED}")


def _is_multi_label(config: Any, source: str) -> bool:
    """Whether several classes may apply to an image. Raises SetupError for a model that gives no classes."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        raise SetupError(f"{source} predicts numbers and no classes, as its problem_type, regression, says")
    return bool(problem == "multi_label_classification")


def _load_class(mapping: Any, config: Any, source: str) -> Any:
    """The model class of a configuration in one of transformers' tables; None where it is not in it."""
    try:
        return mapping.get(type(config), None)
    except ModuleNotFoundError as error:
        # torchvision's operators load only with the version of torch that they were built for.
        hint = f"a torchvision that was not built for torch {torch.__version__} is the usual reason"
        raise SetupError(f"transformers cannot import the modules of {source}, and {hint}") from error


def _labels(config: Any, source: str) -> tuple[str, ...]:
    """The class names in order."""
    table = config.id2label or {}
    try:
        labels = labels_in_order(table)
    except ValueError:
        labels = ()
    if not labels or len(labels) > len(table):
        raise SetupError(f"the configuration of {source} does not number its labels from 0, one by one")
    names = tuple(map(str, labels))
    if problem := label_problem(names):
        raise SetupError(f"the id2label of {source} cannot be served: {problem}")
    return names


def _preprocessor(source: str) -> tuple[Mapping[str, Any], str]:
    """The table of the checkpoint's preprocessing, and a name for it in error messages."""
    for file, key in _PREPROCESSORS:
        path = _file(source, file)
        if path is None:
            continue
        where = f"{file} of {source}"
        try:
            table = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SetupError(f"{where} is not readable JSON: {sentence(error)}") from error
        if not isinstance(table, dict):
            raise SetupError(f"{where} is not a table")
        table = table if key is None else table.get(key)
        if isinstance(table, dict):
            return table, where
    raise SetupError(f"{source} has no preprocessor_config.json, which holds the preprocessing of its images")


def _file(source: str, file: str) -> Path | None:
    """One file of the checkpoint, downloaded where necessary; None where the checkpoint has no such file."""
    cached_file = import_module("transformers.utils").cached_file
    try:
        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, http_error()) as error:
        raise SetupError(f"{file} of {source} cannot be loaded: {sentence(error)}") from error
    return None if path is None else Path(path)


def read_weights(kind: Any, config: Any, source: str) -> Any:
    """The model in float32. Parameters that the file lacks become NaN, so that no answer depends on them.

    Raises SetupError for weights that cannot be loaded, and for a configuration of a far larger network.
    """
    stored, where = stored_size(source, partial(_file, source)), f"the config.json of {source}"
    check_counts(config.to_dict(), where, stored)
    try:
        with _quietly(), limited_to(stored, where):
            model, loaded = kind.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except (OSError, SafetensorError, http_error()) as error:
        raise SetupError(f"the weights of {source} cannot be loaded: {sentence(error)}") from error
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise SetupError(f"transformers cannot load {source}: {sentence(error)}") from error
    for name, stored, expected in sorted(loaded["mismatched_keys"], key=_name_of):
        raise SetupError(
            f"the weights of {source} do not fit its config.json: {name} is {tuple(stored)} where "
            f"{tuple(expected)} fits, as for another number of labels; id2label must name each class once"
        )
    missing = set(loaded["missing_keys"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing:
                parameter.fill_(torch.nan)
    return model.eval().requires_grad_(False)


def _table(path: Path, source: str) -> Mapping[str, Any]:
    """The configuration as it is written. Raises SetupError."""
    try:
        return read_table(path)
    except SetupError as error:
        raise SetupError(f"the configuration of {source} cannot be read: {error.detail}") from None


def _name_of(mismatch: tuple[Any, ...]) -> str:
    return str(mismatch[0])


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars and tables: the command line shows its own, and one sentence."""
    logging = import_module("transformers.utils.logging")
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _licence(source: str) -> str:
    """The licence in the header of the checkpoint's README; empty where it names none."""
    path = _file(source, "README.md")
    return licence_of(path.parent) if path is not None else ""


def _config_error() -> type[Exception]:
    """What transformers 5 raises for a value of another type. Older hubs have no such error."""
    errors = import_module("huggingface_hub.errors")
    error: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
    return error
