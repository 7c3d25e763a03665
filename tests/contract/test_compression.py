"""The contract of every compression method. Each module in the package is tested as soon as it exists."""

import copy
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import compression
from foveate.models.layers.cells import grid_positions
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    QuestionTokens,
    VisualAssignment,
)

SQUARE = CompressionContext((6, 6))
WIDE = CompressionContext((4, 9))
"""As many patches, in another shape."""
WIDTH, WORDS = 24, 5
MODULES = [module.name for module in pkgutil.iter_modules(compression.__path__)]
SELECTING = {"none", "random", "uniform", "diverse", "resolution"}
"""Ours whose tokens are single patches."""
BAD_ARGUMENTS = ["0", "37", "-1", "nan", "4.0", "nonsense", "16:x", "16:", "٣", "x" * 150]

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def spec(name: str, argument: str | None) -> str:
    return name if argument is None else f"{name}:{argument}"


def examples(name: str) -> tuple[str | None, ...]:
    arguments: tuple[str | None, ...] = import_module(f"{compression.__name__}.{name}").EXAMPLES
    return arguments


SPECS = [spec(name, argument) for name in MODULES for argument in examples(name)]
IDENTITIES = [spec(name, examples(name)[0]) for name in MODULES]
every_spec = pytest.mark.parametrize("text", SPECS)


def pictures(
    grid: tuple[int, int], batch: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PatchVectors:
    draw, patches = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    words = torch.randn(batch, WORDS, WIDTH, generator=draw).to(dtype)
    mask = torch.arange(WORDS) < torch.randint(1, WORDS + 1, (batch, 1), generator=draw)
    vectors = torch.randn(batch, patches, WIDTH, generator=draw).to(dtype)
    salience = torch.rand(batch, patches, generator=draw).to(dtype)
    return PatchVectors(vectors, salience, grid, QuestionTokens(words, mask))


def rows(patches: PatchVectors, index: list[int]) -> PatchVectors:
    question = patches.question
    assert question is not None
    asked = QuestionTokens(question.embeddings[index], question.mask[index])
    return replace(patches, vectors=patches.vectors[index], salience=patches.salience[index], question=asked)


def expanded(assignment: VisualAssignment, batch: int) -> tuple[Tensor, Tensor]:
    """Weights (B, K, P) and positions (B, K, 2)."""
    return assignment.weights.expand(batch, -1, -1), assignment.positions.expand(batch, -1, -1)


def checked(method: Compression, patches: PatchVectors) -> VisualAssignment:
    """The assignment, with all checks of the contract."""
    before = [patches.vectors.clone(), patches.salience.clone()]
    assignment, again = method(patches), method(patches)
    assert torch.equal(patches.vectors, before[0]) and torch.equal(patches.salience, before[1])
    for field in fields(VisualAssignment):
        one, two = getattr(assignment, field.name), getattr(again, field.name)
        assert one is two or torch.equal(one, two), "a method must decide the same in both calls"
    batch, length, _ = patches.vectors.shape
    assert assignment.weights.dtype == assignment.positions.dtype == torch.float32
    weights, positions = expanded(assignment, batch)
    assert weights.shape == (batch, method.count, length)
    assert positions.shape == (batch, method.count, 2)
    assert weights.isfinite().all() and weights.min() >= 0
    torch.testing.assert_close(weights.sum(2), torch.ones(batch, method.count))
    assert positions.min() > 0 and positions.max() < 1
    centres = grid_positions(*method.grid)
    one_patch = (weights > 0).sum(2) == 1
    assert torch.equal(positions[one_patch], centres[weights.argmax(2)[one_patch]])
    assert method.selects is (assignment.kept is not None)
    if assignment.kept is not None:
        kept = assignment.kept.expand(batch, -1)
        assert one_patch.all()
        assert torch.equal(weights.argmax(2), kept)
        assert torch.all(kept.diff(dim=1) > 0), "kept patches are in order, each once"
        assert torch.equal(assignment.apply(patches.vectors), torch.stack(
            [vectors[index] for vectors, index in zip(patches.vectors, kept, strict=True)]
        ))  # fmt: skip
    assert torch.equal(assignment.counts.expand(batch, -1), (weights > 0).sum(2).float())
    return assignment


def assert_same(one: VisualAssignment, other: VisualAssignment, index: list[int], batch: int) -> None:
    """Rows of an assignment of `batch` pictures equal another assignment."""
    for left, right in zip(expanded(one, batch), expanded(other, len(index)), strict=True):
        assert (left[index] - right).abs().max() < 1e-6


def test_every_module_has_examples_and_a_description() -> None:
    assert {"pool", "diverse", "guided", "merge", "resolution", "random", "uniform", "none"} <= set(MODULES)
    for name in MODULES:
        assert examples(name), f"{name}.EXAMPLES is empty"
        assert name in compression.catalogue()
        described = inspect.getdoc(compression.catalogue()[name]()) or ""
        assert described.startswith(f"`{name}"), described


@pytest.mark.parametrize("name", MODULES)
def test_every_module_offers_candidates_that_can_be_built(name: str) -> None:
    for context in (CompressionContext((14, 14)), SQUARE):
        offered = compression.candidates(context)[name]
        assert offered and len(set(offered)) == len(offered)
        for text in offered:
            assert compression.create(text, context).count <= context.patches
            assert Plan.parse(f"{text}/fp32", Plan("vit-t-chat", 224)).reducer == text


@pytest.mark.parametrize("text", IDENTITIES)
def test_the_first_example_is_the_identity(text: str) -> None:
    for context in (SQUARE, WIDE):
        method, patches = compression.create(text, context), pictures(context.grid)
        assert method.grid == context.grid
        assignment = checked(method, patches)
        weights, positions = expanded(assignment, 3)
        assert torch.equal(weights, torch.eye(36).expand(3, -1, -1))
        assert torch.equal(positions, grid_positions(*context.grid).expand(3, -1, -1))
        assert torch.equal(assignment.apply(patches.vectors), patches.vectors)


@every_spec
@pytest.mark.parametrize("context", [SQUARE, WIDE], ids=["square", "wide"])
def test_the_assignment_is_valid(text: str, context: CompressionContext) -> None:
    try:
        method = compression.create(text, context)
    except BadPlan as refused:
        assert context is WIDE and text.partition(":")[0] in ("pool", "resolution"), refused
        return
    argument = text.split(":")[1:]
    assert method.count == (int(argument[0]) if argument else context.patches)
    for batch in (1, 3):
        checked(method, pictures(method.grid, batch))


@pytest.mark.parametrize("name", sorted(SELECTING))
def test_selecting_methods_say_which_patches_they_keep(name: str) -> None:
    for argument in examples(name):
        method = compression.create(spec(name, argument), SQUARE)
        assert checked(method, pictures(method.grid)).kept is not None


@every_spec
def test_a_row_gives_the_same_alone_and_in_a_batch(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches = pictures(method.grid, 4)
    together = method(patches)
    for index in range(4):
        assert_same(together, method(rows(patches, [index])), [index], 4)


@every_spec
def test_another_rows_picture_changes_nothing_in_this_row(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches, others = pictures(method.grid), pictures(method.grid, seed=9)
    changed = rows(patches, [0, 1, 2])
    changed.vectors[1], changed.salience[1] = 50 * others.vectors[1], others.salience[1]
    assert_same(method(patches), method(rows(changed, [0, 2])), [0, 2], 3)
    assert_same(method(changed), method(rows(patches, [0, 2])), [0, 2], 3)


@every_spec
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_input_gives_finite_and_equal_rows(text: str, value: float) -> None:
    method = compression.create(text, SQUARE)
    patches = pictures(method.grid)
    constant = replace(
        patches,
        vectors=torch.full_like(patches.vectors, value),
        salience=torch.zeros_like(patches.salience),
        question=QuestionTokens(torch.full((3, WORDS, WIDTH), value), torch.ones(3, WORDS, dtype=torch.bool)),
    )
    weights, _ = expanded(checked(method, constant), 3)
    assert torch.equal(weights[0], weights[1])


@every_spec
def test_bfloat16_runs_and_computes_in_float32(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches = pictures(method.grid, dtype=torch.bfloat16)
    assignment = checked(method, patches)
    wide = replace(patches, vectors=patches.vectors.float(), salience=patches.salience.float())
    assert_same(assignment, method(wide), [0, 1, 2], 3)
    assert assignment.apply(patches.vectors).dtype == torch.bfloat16


@every_spec
def test_a_patch_is_in_at_most_one_token(text: str) -> None:
    if text.startswith("pool"):
        return  # cells overlap where they do not divide the patches
    method = compression.create(text, SQUARE)
    weights, _ = expanded(method(pictures(method.grid)), 3)
    assert torch.all((weights > 0).sum(1) <= 1)


@pytest.mark.parametrize("name", ["pool", "merge", "guided"])
def test_methods_that_average_drop_no_patch(name: str) -> None:
    method = compression.create(f"{name}:16", SQUARE)
    weights, _ = expanded(method(pictures(method.grid)), 3)
    assert torch.all((weights > 0).sum(1) >= 1)


@every_spec
def test_only_a_method_that_says_so_depends_on_the_question(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches, other = pictures(method.grid), pictures(method.grid, seed=5)
    asked = replace(patches, question=other.question)
    if method.needs_question:
        if 1 < method.count < 36:
            assert not torch.equal(method(patches).weights, method(asked).weights)
        with pytest.raises(ValueError, match="question"):
            method(replace(patches, question=None))
    else:
        assert torch.equal(method(patches).weights, method(asked).weights)
        assert torch.equal(method(patches).weights, method(replace(patches, question=None)).weights)


@every_spec
def test_only_a_method_that_says_so_depends_on_the_vectors(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches, other = pictures(method.grid), pictures(method.grid, seed=5)
    if not method.needs_vectors:
        assert torch.equal(method(patches).weights, method(replace(patches, vectors=other.vectors)).weights)
        narrow = replace(patches, vectors=patches.vectors[..., :3])
        assert torch.equal(method(patches).weights, method(narrow).weights)
    elif 1 < method.count < 36:
        assert not torch.equal(
            method(patches).weights, method(replace(patches, vectors=other.vectors)).weights
        )


@every_spec
def test_another_grid_than_the_methods_is_refused(text: str) -> None:
    method = compression.create(text, SQUARE)
    with pytest.raises(ValueError, match="built for"):
        method(pictures((5, 7)))


@every_spec
def test_the_cost_is_that_of_the_products(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches = pictures(method.grid)
    with FlopCounterMode(display=False) as counter:
        method(patches)
    assert counter.get_total_flops() == 2 * 3 * method.macs(WIDTH, WORDS)


@every_spec
def test_a_method_keeps_no_state(text: str) -> None:
    method = compression.create(text, SQUARE)
    patches = pictures(method.grid)
    twin, before, first = copy.deepcopy(method), pickle.dumps(method), method(patches)
    method(pictures(method.grid, 5, seed=8))
    for again in (method(patches), twin(patches), compression.create(text, SQUARE)(patches)):
        assert torch.equal(first.weights, again.weights)
    assert pickle.dumps(method) == before


@pytest.mark.parametrize("argument", BAD_ARGUMENTS)
@pytest.mark.parametrize("name", MODULES)
def test_a_bad_argument_is_refused_in_one_sentence(name: str, argument: str) -> None:
    with pytest.raises(BadPlan) as refused:
        compression.create(f"{name}:{argument}", SQUARE)
    assert 0 < len(refused.value.detail) < 250
    assert name in refused.value.detail and "\n" not in refused.value.detail


@pytest.mark.parametrize("name", [name for name in MODULES if name != "none"])
def test_a_count_is_needed(name: str) -> None:
    with pytest.raises(BadPlan, match="from 1 to 36"):
        compression.create(name, SQUARE)


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(BadPlan, match="the nearest is guided; there are diverse, guided, merge"):
        compression.create("guide:9", SQUARE)
    with pytest.raises(BadPlan, match="no compression method 'warp'; there are diverse"):
        compression.create("warp:9", SQUARE)


THIRD_PARTY = '''
"""Keeps the first patches."""
import torch
from foveate.models.layers.visual_tokens import Compression, selection, token_count

class FirstPatches(Compression):
    selects = True
    def __init__(self, count, grid):
        self.count, self.grid = count, grid
    def __call__(self, patches):
        return selection(torch.arange(self.count), patches.positions(self.grid))

def build(argument, context):
    """`first:9` keeps the first 9 patches."""
    return FirstPatches(token_count("first", argument, context), context.grid)
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that registers a method as `first` and as `pool`, which must not replace ours."""
    (tmp_path / "first_patches.py").write_text(THIRD_PARTY)
    installed = tmp_path / "first_patches-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: first-patches\nVersion: 1.0\n")
    entries = "[foveate.compression]\nfirst = first_patches:build\npool = first_patches:build\n"
    (installed / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    compression.catalogue.cache_clear()
    yield
    compression.catalogue.cache_clear()


@pytest.mark.usefixtures("third_party")
def test_a_third_party_method_is_available_and_does_not_replace_ours() -> None:
    assert checked(compression.create("first:9", SQUARE), pictures((6, 6))).kept is not None
    assert checked(compression.create("pool:9", SQUARE), pictures((6, 6))).kept is None


def test_a_method_that_is_not_installed_is_not_in_the_catalogue() -> None:
    catalogue: dict[str, Any] = dict(compression.catalogue())
    assert "first" not in catalogue
