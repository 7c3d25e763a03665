"""Finds an own model by name: `package.module:Class`, or `path/to/file.py:Class`."""

import importlib
import importlib.util
import inspect
import logging
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.core.errors import FoveateError, SetupError

log = logging.getLogger(__name__)

_ATTRIBUTE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_MODULE = re.compile(rf"{_ATTRIBUTE}:{_ATTRIBUTE}")
_FILE = re.compile(rf"(?P<file>.+\.py)(:(?P<attribute>{_ATTRIBUTE}))?")
OTHER_PREFIXES = ("hf:", "random:", "timm:")
"""What names of other models begin with."""
ONNX_SUFFIX = ".onnx"


def is_own(name: str) -> bool:
    """Whether a name stands for a Python class or an ONNX file."""
    if name.startswith(OTHER_PREFIXES):
        return False
    return name.endswith(ONNX_SUFFIX) or bool(_FILE.fullmatch(name) or _MODULE.fullmatch(name))


def file_of(name: str) -> Path | None:
    """The file that a name stands for; None for a module of the import path."""
    if name.endswith(ONNX_SUFFIX):
        return Path(name)
    match = _FILE.fullmatch(name)
    return Path(match["file"]) if match else None


def find_own(name: str) -> Any:
    """Import and make the model of a name. Raises SetupError, one sentence, if that does not succeed."""
    match = _FILE.fullmatch(name)
    if match is None:
        module_name, _, attribute = name.partition(":")
        module = _import_module(module_name, name)
    else:
        module = _import_file(Path(match["file"]), name)
        attribute = match["attribute"] or ""
    return instantiate(_attribute(module, attribute, name), name)


def instantiate(target: Any, name: str) -> Any:
    """The model: the target itself, or what it returns if it is a class or a function.

    Raises SetupError if it needs arguments, or raises.
    """
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        return target
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some built-in types have none
        parameters = []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
    if needed:
        raise SetupError(
            f"{name} needs the argument {needed[0]}: give it a default, or name a function without arguments "
            "that returns the model"
        )
    return call_user_code(target, f"{name} could not be made")


def call_user_code(function: Any, what: str) -> Any:
    """Call code of the user. Raises SetupError: `what`, the last line of the error, and its place."""
    try:
        return function()
    except FoveateError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("%s", what, exc_info=True)
        raise SetupError(f"{what}: {describe_error(error)}") from error


def describe_error(error: BaseException) -> str:
    """An exception in one line, with the innermost line of the user's own code, where there is one."""
    text = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})" if error.filename else ""
        return f"{type(error).__name__}: {error.msg}{place}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return f"{line} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else line


def _is_users(file: str) -> bool:
    """Whether a file belongs neither to Python, nor to an installed package, nor to this one."""
    library = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    own = str(Path(__file__).parents[1])
    return not file.startswith(("<", own, *library))


def _import_module(module_name: str, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)

    def load() -> ModuleType:
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise SetupError(
                f"there is no module {error.name}, which {name} names: it is searched in {folder} and among "
                "the installed packages"
            ) from None

    return call_user_code(load, f"{module_name} could not be imported")  # type: ignore[no-any-return]


def _import_file(path: Path, name: str) -> ModuleType:
    """Import a file under its stem, with its folder on the import path, as `python FILE` has it."""
    if not path.is_file():
        raise SetupError(f"there is no file {path}, which {name} names")
    path = path.resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    module_name = path.stem if loaded is None and path.stem.isidentifier() else f"own_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise SetupError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[module_name] = module
    loader = spec.loader
    try:
        call_user_code(lambda: loader.exec_module(module), f"{path} could not be imported")
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    """A class, a function or an object of the module. Raises SetupError, which lists what could be meant."""
    value: Any = module
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part, None)
        if value is None:
            break
    if attribute and value is not None:
        return value
    models = [
        key for key, member in vars(module).items()
        if not key.startswith("_") and callable(getattr(member, "predict", None))
        and getattr(member, "__module__", module.__name__) == module.__name__
    ]  # fmt: skip
    where = module.__file__ or module.__name__
    hint = f"the models in it are {', '.join(models)}" if models else "it has no class with a method predict"
    if attribute:
        raise SetupError(f"there is no {attribute} in {where}, which {name} names; {hint}")
    if len(models) == 1:
        return getattr(module, models[0])
    raise SetupError(f"{name} names no class, as in {name}:Model; {hint}")
