"""The card of a checkpoint: everything about a model except its weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from foveate.core.class_labels import label_problem
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec, Task
from foveate.models.heads import ExitSpec
from foveate.models.heads.clip import ClipSpec
from foveate.models.heads.dense import STRIDE, DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.zoo.tables import RGB, parse_record, parse_rgb

MAX_NAME = 64
"""Characters of a name."""
MAX_EXIT_SIZE = 31
MAX_FRAMES = 256
MAX_DENSE_CLASSES = 256
"""A mask's pixel is one byte."""
_CENTRED: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class CheckpointCard:
    """The description of a model in its TOML file or in the metadata of its weights.

    Raises SetupError for values that contradict one another.
    """

    name: str
    config: ViTConfig
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits; empty where they are unknown."""
    input: InputSpec = InputSpec()  # noqa: RUF009 -- frozen, so one instance serves every card
    mean: RGB = _CENTRED
    """Subtracted from each channel in 0..1, before the division by `std`."""
    std: RGB = _CENTRED
    description: str = ""
    licence: str = ""
    source: str = ""
    exits: tuple[ExitSpec, ...] = ()
    """Heads that can answer before the last block, earliest first."""
    gates: tuple[int, ...] = ()
    """Blocks before each gate that scores patches (IA-RED), in order."""
    dense: DenseSpec | None = None
    """The head that segments images; None: the model classifies."""
    clip: ClipSpec | None = None
    """The head that classifies clips; None: the model takes images."""
    trunk: str = ""
    """A shipped model that provides the trunk. The model's own file then holds the head alone."""

    def __post_init__(self) -> None:
        self._check_shape()
        self._check_preprocessing()
        if len(self.name) > MAX_NAME:
            raise SetupError(f"{self.name[:20]}...: a name has at most {MAX_NAME} characters")
        classes = self.clip.classes if self.clip else self.config.classes
        if self.labels and len(self.labels) != classes:
            raise SetupError(f"{self.name}: {len(self.labels)} labels do not name {classes} classes")
        if problem := label_problem(self.labels):
            raise SetupError(f"{self.name}: {problem}")
        self._check_exits()
        if self.dense is not None:
            self._check_dense(self.dense)
        if self.clip is not None:
            self._check_clip(self.clip)
        depth = self.config.depth
        if self.gates and any(later <= earlier for earlier, later in pairwise((0, *self.gates, depth))):
            raise SetupError(f"{self.name}: gates come after blocks 1 to {depth - 1}, in order, once each")

    def _check_shape(self) -> None:
        g = self.config
        if min(g.width, g.depth, g.heads, g.patch_size, g.image_size) < 1 or g.width % g.heads:
            raise SetupError(f"{self.name}: a width of {g.width} does not divide into {g.heads} heads")
        if g.image_size % g.patch_size:
            raise SetupError(
                f"{self.name}: patches of {g.patch_size} pixels do not tile images of {g.image_size}"
            )
        pool_heads = g.pool_heads or g.heads
        if g.pool == "map" and (pool_heads < 1 or g.width % pool_heads):
            raise SetupError(f"{self.name}: a width of {g.width} is no multiple of pool_heads, {pool_heads}")
        if g.rope != "none" and (g.width // g.heads) % 4:
            raise SetupError(f"{self.name}: heads with rotary positions have a width that is a multiple of 4")
        if g.rope != "none" and not (0 < g.rope_temperature < math.inf and g.rope_reference >= 0):
            raise SetupError(f"{self.name}: rope_temperature or rope_reference is out of range")
        if g.pool in ("token", "token_avg") and not g.class_token:
            raise SetupError(f"{self.name}: there is no class token to pool")
        if g.pool == "token_avg" and (g.fc_norm or g.distilled):
            raise SetupError(f"{self.name}: pooling token_avg goes with one classifier and no norm before it")
        if g.projection < 0 or (g.projection and (g.classes or g.distilled)):
            raise SetupError(f"{self.name}: a projection makes embeddings, in place of classes")
        ratios = math.isfinite(g.mlp_ratio + g.pool_ratio) and g.mlp_ratio > 0 and g.pool_ratio >= 0
        if not (ratios and math.isfinite(g.rope_offset) and 0 < g.eps < 1 and g.registers >= 0):
            raise SetupError(f"{self.name}: mlp_ratio, eps or registers is out of range")

    def _check_preprocessing(self) -> None:
        if not 0 < self.input.crop_pct <= 1 or not all(0 < value < math.inf for value in self.std):
            raise SetupError(f"{self.name}: crop_pct or std is out of range")
        if not all(math.isfinite(value) for value in self.mean):
            raise SetupError(f"{self.name}: mean is out of range")

    def _check_exits(self) -> None:
        blocks = [0, *(spec.after for spec in self.exits), self.config.depth]
        if self.exits and any(later <= earlier for earlier, later in pairwise(blocks)):
            last = self.config.depth - 1
            raise SetupError(f"{self.name}: exits come after blocks 1 to {last}, in that order and once each")
        if self.exits and not self.config.classes:
            raise SetupError(f"{self.name}: exits predict classes, and this model has none")
        for spec in self.exits:
            if not 1 <= spec.size <= MAX_EXIT_SIZE or (spec.kind == "local" and spec.size % 2 == 0):
                raise SetupError(
                    f"{self.name}: the size of an exit is 1 to {MAX_EXIT_SIZE}, and odd for a local one"
                )

    def _check_dense(self, dense: DenseSpec) -> None:
        if min(dense.classes, dense.width, dense.fine) < 1 or dense.fine % 2:
            raise SetupError(f"{self.name}: a dense head has classes, and an even number of fine features")
        if dense.classes > MAX_DENSE_CLASSES:
            raise SetupError(f"{self.name}: a dense head has at most {MAX_DENSE_CLASSES} classes")
        if self.config.patch_size % STRIDE:
            raise SetupError(f"{self.name}: a dense head divides patches into squares of {STRIDE} pixels")
        if self.labels and len(self.labels) != dense.classes - 1:
            raise SetupError(
                f"{self.name}: {len(self.labels)} labels and the background do not name its "
                f"{dense.classes} classes"
            )

    def _check_clip(self, clip: ClipSpec) -> None:
        g = self.config
        if min(asdict(clip).values()) < 1 or clip.width % clip.heads or clip.frames > MAX_FRAMES:
            raise SetupError(
                f"{self.name}: a clip head takes 1 to {MAX_FRAMES} frames, and its heads divide its width"
            )
        if max(clip.glance_size, clip.image_size) > g.image_size or clip.glance_depth > g.depth:
            raise SetupError(f"{self.name}: a clip head's image sizes and depth are at most its trunk's")
        if clip.glance_size % g.patch_size or clip.image_size % g.patch_size:
            raise SetupError(f"{self.name}: patches of {g.patch_size} pixels do not tile its frames")
        if self.dense is not None:
            raise SetupError(f"{self.name}: a model has a clip head or a dense head, not both")

    @property
    def task(self) -> Task:
        """segment for a model with a dense head, embed for one without classes, else classify."""
        if self.dense:
            return "segment"
        return "classify" if self.clip or self.config.classes else "embed"

    @classmethod
    def read(cls, name: str, table: Mapping[str, Any], where: str) -> "CheckpointCard":
        """A card from a TOML or JSON table. name: used where the table has none; where: for error messages.

        Raises SetupError for unknown entries, for values of other types, and as the constructor does.
        """
        try:
            return cls._read(name, table, where)
        except (TypeError, ValueError, OverflowError) as error:
            raise SetupError(f"{where} is not a readable model card: {error}") from error

    @classmethod
    def _read(cls, name: str, table: Mapping[str, Any], where: str) -> "CheckpointCard":
        rest = dict(table)
        declared = rest.pop("name", name)
        config = parse_record(ViTConfig, rest.pop("geometry", None), f"{where}: [geometry]")
        pixels = dict(rest.pop("input", {}))
        mean, std = (parse_rgb(pixels.pop(key, _CENTRED), f"{where}: {key}") for key in ("mean", "std"))
        spec = parse_record(InputSpec, pixels, f"{where}: [input]")
        exits = tuple(parse_record(ExitSpec, s, f"{where}: [[exits]]") for s in rest.pop("exits", ()))
        gates = tuple(rest.pop("gates", ()))
        if not all(type(after) is int for after in gates):
            raise SetupError(f"{where}: gates are whole numbers of blocks")
        labels = tuple(str(label) for label in rest.pop("labels", ()))
        dense_table, clip_table = rest.pop("dense", None), rest.pop("clip", None)
        dense = None if dense_table is None else parse_record(DenseSpec, dense_table, f"{where}: [dense]")
        clip = None if clip_table is None else parse_record(ClipSpec, clip_table, f"{where}: [clip]")
        trunk = str(rest.pop("trunk", ""))
        texts = {key: str(rest.pop(key, "")) for key in ("description", "licence", "source")}
        if rest:
            raise SetupError(f"{where} has unknown entries: {', '.join(sorted(rest))}")
        return cls(
            str(declared), config, labels, spec, mean, std,
            exits=exits, gates=gates, dense=dense, clip=clip, trunk=trunk, **texts,
        )  # fmt: skip

    def table(self) -> dict[str, Any]:
        """The card as a table that `read` accepts."""
        # Files call the configuration "geometry"; the replacement keeps the order of the keys.
        flat = {f.name.replace("config", "geometry"): getattr(self, f.name) for f in fields(CheckpointCard)}
        flat["geometry"] = asdict(self.config)
        flat["input"] = asdict(self.input) | {"mean": flat.pop("mean"), "std": flat.pop("std")}
        flat["exits"] = [asdict(spec) for spec in self.exits]
        flat["dense"] = self.dense and asdict(self.dense)
        flat["clip"] = self.clip and asdict(self.clip)
        return flat
