"""Model cards: what is known of a model besides its weights, and the cards of the models shipped here."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_origin

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec, Task
from foveate.core.profile import Profile
from foveate.models.heads import ExitSpec
from foveate.models.heads.clip import ClipSpec
from foveate.models.heads.dense import STRIDE, DenseSpec
from foveate.models.layers.config import ViTConfig

RGB = tuple[float, float, float]
MAX_NAME = 64
MAX_EXIT_SIZE = 31
MAX_FRAMES = 256
_CENTRED: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Card:
    """Everything about a model that is not a weight. A card that contradicts itself raises SetupError."""

    name: str
    config: ViTConfig
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits; empty where nobody named them."""
    input: InputSpec = InputSpec()  # noqa: RUF009 -- frozen, so one instance serves every card
    mean: RGB = _CENTRED
    """Subtracted from each channel of an image in 0..1, before the division by `std`."""
    std: RGB = _CENTRED
    description: str = ""
    licence: str = ""
    source: str = ""
    exits: tuple[ExitSpec, ...] = ()
    """Heads that can answer before the last block, earliest first."""
    gates: tuple[int, ...] = ()
    """Blocks before each gate that scores patches (IA-RED), in order."""
    dense: DenseSpec | None = None
    """The head that names pixels; None: the model names whole pictures."""
    clip: ClipSpec | None = None
    """The head that names what happens in clips; None: the model takes pictures."""
    trunk: str = ""
    """A shipped model whose weights this one has, its own file holding the head alone."""

    def __post_init__(self) -> None:
        g = self.config
        if min(g.width, g.depth, g.heads, g.patch_size, g.image_size) < 1 or g.width % g.heads:
            raise SetupError(f"{self.name}: a width of {g.width} does not divide into {g.heads} heads")
        if g.image_size % g.patch_size:
            raise SetupError(
                f"{self.name}: patches of {g.patch_size} pixels do not tile images of {g.image_size}"
            )
        if g.pool == "token" and not g.class_token:
            raise SetupError(f"{self.name}: there is no class token to pool")
        if not (math.isfinite(g.mlp_ratio) and g.mlp_ratio > 0 and 0 < g.eps < 1 and g.registers >= 0):
            raise SetupError(f"{self.name}: mlp_ratio, eps or registers is out of range")
        if not 0 < self.input.crop_pct <= 1 or not all(0 < value < math.inf for value in self.std):
            raise SetupError(f"{self.name}: crop_pct or std is out of range")
        if not all(math.isfinite(value) for value in self.mean):
            raise SetupError(f"{self.name}: mean is out of range")
        if len(self.name) > MAX_NAME:
            raise SetupError(f"{self.name[:20]}...: a name is at most {MAX_NAME} characters long")
        classes = self.clip.classes if self.clip else g.classes
        if self.labels and len(self.labels) != classes:
            raise SetupError(f"{self.name}: {len(self.labels)} labels do not name {classes} classes")
        self._check_exits()
        if self.dense is not None:
            self._check_dense(self.dense)
        if self.clip is not None:
            self._check_clip(self.clip)
        if any(later <= earlier for earlier, later in pairwise((0, *self.gates, g.depth))) and self.gates:
            raise SetupError(f"{self.name}: gates come after blocks 1 to {g.depth - 1}, in order, once each")

    def _check_exits(self) -> None:
        blocks = [0, *(spec.after for spec in self.exits), self.config.depth]
        if self.exits and any(later <= earlier for earlier, later in pairwise(blocks)):
            last = self.config.depth - 1
            raise SetupError(f"{self.name}: exits come after blocks 1 to {last}, in that order and once each")
        if self.exits and not self.config.classes:
            raise SetupError(f"{self.name}: exits name classes, and this model has none")
        for spec in self.exits:
            if not 1 <= spec.size <= MAX_EXIT_SIZE or (spec.kind == "local" and spec.size % 2 == 0):
                raise SetupError(
                    f"{self.name}: the size of an exit is 1 to {MAX_EXIT_SIZE}, and odd for a local one"
                )

    def _check_dense(self, dense: DenseSpec) -> None:
        if min(dense.classes, dense.width, dense.fine) < 1 or dense.fine % 2 or dense.classes > 256:
            raise SetupError(f"{self.name}: a dense head has 1 to 256 classes and an even number of features")
        if self.config.patch_size % STRIDE:
            raise SetupError(f"{self.name}: a dense head cuts patches into squares of {STRIDE} pixels")
        if self.labels and len(self.labels) != dense.classes - 1:
            raise SetupError(f"{self.name}: {len(self.labels)} labels and the background are not its classes")

    def _check_clip(self, clip: ClipSpec) -> None:
        g = self.config
        if min(asdict(clip).values()) < 1 or clip.width % clip.heads or clip.frames > MAX_FRAMES:
            raise SetupError(f"{self.name}: a clip head looks at 1 to {MAX_FRAMES} frames")
        if max(clip.glance_size, clip.image_size) > g.image_size or clip.glance_depth > g.depth:
            raise SetupError(f"{self.name}: a clip head sees no more than its trunk does")
        if clip.glance_size % g.patch_size or clip.image_size % g.patch_size:
            raise SetupError(f"{self.name}: patches of {g.patch_size} pixels do not tile its frames")
        if self.dense is not None:
            raise SetupError(f"{self.name}: a model names clips or pixels, not both")

    @property
    def task(self) -> Task:
        return "segment" if self.dense else "classify"

    @classmethod
    def read(cls, name: str, table: Mapping[str, Any], where: str) -> "Card":
        """A card from TOML or JSON; `where` names the file in the sentence a SetupError carries."""
        try:
            return cls._read(name, table, where)
        except (TypeError, ValueError, OverflowError) as error:
            raise SetupError(f"{where} is not a readable model card: {error}") from error

    @classmethod
    def _read(cls, name: str, table: Mapping[str, Any], where: str) -> "Card":
        rest = dict(table)
        declared = rest.pop("name", name)
        config = _record(ViTConfig, rest.pop("geometry", None), f"{where}: [geometry]")
        pixels = dict(rest.pop("input", {}))
        mean, std = (_rgb(pixels.pop(key, _CENTRED), f"{where}: {key}") for key in ("mean", "std"))
        spec = _record(InputSpec, pixels, f"{where}: [input]")
        exits = tuple(_record(ExitSpec, s, f"{where}: [[exits]]") for s in rest.pop("exits", ()))
        gates = tuple(rest.pop("gates", ()))
        if not all(_fits(after, int) for after in gates):
            raise SetupError(f"{where}: gates stand after whole numbers of blocks")
        labels = tuple(str(label) for label in rest.pop("labels", ()))
        given = rest.pop("dense", None)
        dense = None if given is None else _record(DenseSpec, given, f"{where}: [dense]")
        filmed = rest.pop("clip", None)
        clip = None if filmed is None else _record(ClipSpec, filmed, f"{where}: [clip]")
        trunk = str(rest.pop("trunk", ""))
        words = {key: str(rest.pop(key, "")) for key in ("description", "licence", "source")}
        if rest:
            raise SetupError(f"{where} has no use for {', '.join(sorted(rest))}")
        return cls(
            str(declared), config, labels, spec, mean, std,
            exits=exits, gates=gates, dense=dense, clip=clip, trunk=trunk, **words,
        )  # fmt: skip

    def table(self) -> dict[str, Any]:
        """What `read` reads back."""
        # Checkpoints and TOML files call the config "geometry"; the order of keys stays as it was.
        flat = {f.name.replace("config", "geometry"): getattr(self, f.name) for f in fields(Card)}
        flat["geometry"] = asdict(self.config)
        flat["input"] = asdict(self.input) | {"mean": flat.pop("mean"), "std": flat.pop("std")}
        flat["exits"] = [asdict(spec) for spec in self.exits]
        flat["dense"] = self.dense and asdict(self.dense)
        flat["clip"] = self.clip and asdict(self.clip)
        return flat


R = TypeVar("R", ViTConfig, InputSpec, ExitSpec, DenseSpec, ClipSpec)


def shipped() -> Traversable:
    """The folder of this package: NAME.toml with NAME.safetensors beside it."""
    return files(__name__)


def names(folder: Traversable | None = None) -> tuple[str, ...]:
    """Models with a card in the folder, sorted."""
    found = (entry.name for entry in (folder or shipped()).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def card(name: str, folder: Traversable | None = None) -> Card:
    """The card of a shipped model. Raises SetupError when it is missing or says what no card says."""
    file = f"{name}.toml"
    try:
        table = tomllib.loads(((folder or shipped()) / file).read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} is not a readable model card: {error}") from error
    if "trunk" in table:
        return _on(card(str(table["trunk"]), folder), table, file)
    return Card.read(name, table, file)


def _on(trunk: Card, table: Mapping[str, Any], where: str) -> Card:
    """The card of a head on another model's trunk: it says what the head is, and the rest is the trunk's."""
    known = {"name", "description", "trunk", "dense", "clip", "labels"}
    if table.keys() - known or {"dense", "clip"} <= table.keys():
        raise SetupError(f"{where} has no use for {', '.join(sorted(table.keys() - known)) or 'two heads'}")
    filmed = "clip" in table
    return replace(
        trunk,
        name=str(table.get("name", "")),
        description=str(table.get("description", "")),
        labels=tuple(str(label) for label in table.get("labels", trunk.labels)),
        exits=(),
        trunk=trunk.name,
        clip=_record(ClipSpec, table["clip"], f"{where}: [clip]") if filmed else None,
        dense=None if filmed else _record(DenseSpec, table.get("dense"), f"{where}: [dense]"),
    )


def profile(name: str) -> Profile | None:
    """What a shipped model's plans were measured to keep and to cost; None where it ships without."""
    file = shipped() / f"{name}.profile.json"
    return Profile.read(file.read_text("utf-8"), file.name) if file.is_file() else None


def _record(kind: type[R], table: object, where: str) -> R:
    """A dataclass of plain fields from a table that names no others."""
    if not isinstance(table, Mapping):
        raise SetupError(f"{where} is missing or not a table")
    types = {f.name: f.type for f in fields(kind)}
    for key, value in table.items():
        if key not in types:
            raise SetupError(f"{where} has no use for {key}")
        if not _fits(value, types[key]):
            raise SetupError(f"{where}: {key} cannot be {value!r}")
    try:
        return kind(**table)
    except TypeError as error:
        raise SetupError(f"{where} is incomplete: {error}") from error


def _fits(value: object, kind: object) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _rgb(value: Any, where: str) -> RGB:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_fits(v, float) for v in value):
        raise SetupError(f"{where} takes three numbers, one a channel")
    red, green, blue = (float(v) for v in value)
    return red, green, blue
