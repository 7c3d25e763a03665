"""The contract of every token reducer. Each module in the package is tested without further registration."""

import copy
import itertools
import pickle
import pkgutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.heads.dense import DenseSpec
from foveate.models.heads.gates import Gate
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import UntrainedContext
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from tests.support.checked_reducer import CheckedReducer, assert_consistent

CONFIGS = {
    "plain": ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=7),
    "two prefix": ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=7, distilled=True),
    "registers": ViTConfig(
        image_size=96, width=24, depth=6, heads=2, classes=7, registers=3, embed_prefix=False
    ),
    "rotary": ViTConfig(
        image_size=96, width=24, depth=6, heads=2, classes=7, rope="cat", rope_reference=5, gated_mlp=True,
        activation="silu", attn_norm=True, mlp_norm=True,
    ),
    "rotary alone": ViTConfig(
        image_size=96, width=24, depth=6, heads=2, classes=7, rope="dinov3", rope_temperature=100.0,
        rope_half=True, pos_embed=False, registers=2, layer_scale=True, pool="map",
    ),
}  # fmt: skip
PLAIN = CONFIGS["plain"]
MODULES = [module.name for module in pkgutil.iter_modules(reduction.__path__)]


def spec(name: str, argument: str | None) -> str:
    return name if argument is None else f"{name}:{argument}"


def examples(name: str) -> tuple[str | None, ...]:
    arguments: tuple[str | None, ...] = import_module(f"{reduction.__name__}.{name}").EXAMPLES
    return arguments


SPECS = [spec(name, argument) for name in MODULES for argument in examples(name)]
IDENTITIES = [spec(name, examples(name)[0]) for name in MODULES]

every_spec = pytest.mark.parametrize("text", SPECS)
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def tiny(config: ViTConfig) -> ElasticViT:
    """A model with weights far enough from zero that attention differs between tokens."""
    dense = DenseSpec(classes=2, width=8, fine=8)
    model, generator = ElasticViT(config, dense=dense).eval(), torch.Generator().manual_seed(7)
    for after in ("2", "4"):
        model.gates[after] = Gate(config.width)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return model


def random_images(batch: int, side: int = 96, seed: int = 3) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model: ElasticViT, images: Tensor, text: str) -> TrunkOutput:
    config = model.config
    out: TrunkOutput = model(images, ResolvedPlan(reduction.create(text, model), config.depth))
    return out


def checked_counts(model: ElasticViT, images: Tensor, text: str) -> list[int]:
    """Token counts after each block, with all checks of the contract after each block."""
    reducer = reduction.create(text, model)
    checked, counts = CheckedReducer(reducer), list[int]()
    tokens = model.embed(images)
    patches = len(tokens) - tokens.prefix
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, checked, index)
        assert_consistent(tokens, patches, checked.plain_sums)
        counts.append(len(tokens))
    assert checked.calls == [b for b in range(len(counts)) if reducer.needs(b) is not None]
    return counts


def test_every_module_has_examples() -> None:
    assert {"none", "evit"} <= set(MODULES)
    for name in MODULES:
        assert examples(name), f"{name}.EXAMPLES is empty"
        assert name in reduction.catalogue()


@every_config
@pytest.mark.parametrize("text", IDENTITIES)
def test_the_first_example_is_the_identity(text: str, config: ViTConfig) -> None:
    model, images = tiny(config), random_images(2)
    out, full = run(model, images, text), run(model, images, "none")
    assert (out.logits - full.logits).abs().max() <= 5e-6  # proportional attention rounds otherwise
    assert torch.equal(out.tokens, full.tokens)


@pytest.mark.parametrize("name", [name for name in MODULES if len(examples(name)) > 1])
def test_the_other_examples_reduce(name: str) -> None:
    model, images = tiny(PLAIN), random_images(2)
    full = run(model, images, "none")
    for argument in examples(name)[1:]:
        out = run(model, images, spec(name, argument))
        assert torch.all(out.tokens < full.tokens)
        assert (out.logits - full.logits).abs().max() > 1e-4


@every_config
@every_spec
@pytest.mark.parametrize(("batch", "side"), [(3, 96), (1, 96), (2, 80), (1, 48), (5, 16)])
def test_after_predicts_the_token_counts(text: str, config: ViTConfig, batch: int, side: int) -> None:
    model = tiny(config)
    start = config.patches(side) + config.prefix
    reducer = reduction.create(text, model)
    predicted = reducer.after(start, config.prefix, config.depth)
    counts, out = (
        checked_counts(model, random_images(batch, side), text),
        run(model, random_images(batch, side), text),
    )
    if reducer.adaptive:
        assert all(count <= bound for count, bound in zip(counts, predicted, strict=True))
        assert out.after is not None
        assert out.after.max(0).values.tolist() == counts
        assert torch.equal(out.after[:, -1], out.tokens)
    else:
        assert tuple(counts) == predicted
        assert out.tokens.tolist() == [predicted[-1]] * batch
        assert out.after is None


@every_config
@every_spec
def test_tokens_and_cost_never_rise(text: str, config: ViTConfig) -> None:
    for side in (96, 80, 48, 16):
        start = config.patches(side) + config.prefix
        reducer = reduction.create(text, tiny(config))
        after = reducer.after(start, config.prefix, config.depth)
        assert len(after) == config.depth
        assert all(now <= before for before, now in itertools.pairwise((start, *after)))
        assert after[-1] > config.prefix
        costs = [gmacs(config, side, after[:depth], reducer.point) for depth in range(config.depth + 1)]
        assert all(less < more for less, more in itertools.pairwise(costs))
        assert costs[-1] <= gmacs(config, side, (start,) * config.depth)


@every_spec
def test_after_at_a_lower_depth_is_a_prefix_of_after(text: str) -> None:
    reducer = reduction.create(text, tiny(PLAIN))
    whole = reducer.after(37, 1, PLAIN.depth)
    assert [reducer.after(37, 1, depth) for depth in range(PLAIN.depth)] == [
        whole[:depth] for depth in range(PLAIN.depth)
    ]


@every_config
@every_spec
def test_a_row_gives_the_same_alone_and_in_a_batch(text: str, config: ViTConfig) -> None:
    model, images = tiny(config), random_images(4)
    together = run(model, images, text).logits
    alone = torch.cat([run(model, image.unsqueeze(0), text).logits for image in images])
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3


@every_spec
def test_another_rows_image_changes_nothing_in_this_row(text: str) -> None:
    model, images = tiny(PLAIN), random_images(3)
    before = run(model, images, text)
    # Padded rows are summed over the width of the fullest row. Decisions stay the same, the last bit may not.
    rounding = 1e-5 if reduction.create(text, model).adaptive else 0
    for other in (torch.zeros_like(images[1]), 50 * images[1], random_images(1, seed=9)[0]):
        changed = images.clone()
        changed[1] = other
        after = run(model, changed, text)
        assert (after.logits[[0, 2]] - before.logits[[0, 2]]).abs().max() <= rounding
        assert not torch.equal(after.logits[1], before.logits[1])
        if after.after is not None and before.after is not None:
            assert torch.equal(after.after[[0, 2]], before.after[[0, 2]])


@every_config
@every_spec
@pytest.mark.parametrize("colour", [0.0, 1.0, -1.0])
def test_ties_give_finite_and_equal_rows(text: str, config: ViTConfig, colour: float) -> None:
    model = tiny(config)
    if model.pos_embed is not None:
        model.pos_embed.zero_()  # all patches of the image become the same token
    images = torch.full((2, 3, 96, 96), colour)
    checked_counts(model, images, text)
    logits = run(model, images, text).logits
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() < 1e-6


@every_config
@every_spec
def test_bfloat16_runs(text: str, config: ViTConfig) -> None:
    model, images = tiny(config), random_images(2)
    expected = run(model, images, text)
    model, images = model.bfloat16(), images.bfloat16()
    checked_counts(model, images, text)
    out = run(model, images, text)
    assert out.logits.dtype == torch.bfloat16
    assert out.logits.isfinite().all()
    if not reduction.create(text, model).adaptive:
        assert torch.equal(out.tokens, expected.tokens)


@every_spec
def test_a_reducer_keeps_no_state(text: str) -> None:
    model, images = tiny(PLAIN), random_images(2)
    reducer = reduction.create(text, model)
    twin, before = copy.deepcopy(reducer), pickle.dumps(reducer)
    resolved = ResolvedPlan(reducer, PLAIN.depth)
    first = model(images, resolved).logits
    model(random_images(3, side=80), resolved)
    assert torch.equal(model(images, resolved).logits, first)
    assert torch.equal(model(images, ResolvedPlan(twin, PLAIN.depth)).logits, first)
    assert pickle.dumps(reducer) == before


def test_two_threads_with_different_plans_do_not_interfere() -> None:
    model, repeats = tiny(PLAIN), 5
    jobs = [(text, random_images(2, seed=i)) for i, text in enumerate(SPECS)]
    resolved = {text: ResolvedPlan(reduction.create(text, model), PLAIN.depth) for text in SPECS}
    serial = [model(images, resolved[text]).logits for text, images in jobs]
    together = threading.Barrier(2, timeout=20)

    def work(order: int) -> list[tuple[int, Tensor]]:
        """Both threads run all plans, one in forward and one in backward order."""
        together.wait()
        with torch.inference_mode():
            numbers = list(range(len(jobs)))[::order] * repeats
            return [(n, model(jobs[n][1], resolved[jobs[n][0]]).logits) for n in numbers]

    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(work, (1, -1)):
            assert len(results) == repeats * len(jobs)
            assert all((logits - serial[n]).abs().max() < 1e-6 for n, logits in results)


@pytest.mark.parametrize("argument", ["nonsense", "-1", "nan", "inf", "0.5:x", "x" * 150])
@pytest.mark.parametrize("name", MODULES)
def test_a_bad_argument_is_refused_in_one_sentence(name: str, argument: str) -> None:
    with pytest.raises(BadPlan) as refused:
        reduction.create(f"{name}:{argument}", tiny(PLAIN))
    assert 0 < len(refused.value.detail) < 250
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("name", MODULES)
def test_a_model_without_class_token_is_served_or_refused(name: str) -> None:
    bare = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=7, class_token=False, pool="avg")
    for argument in examples(name):
        try:
            reduction.create(spec(name, argument), tiny(bare))
        except BadPlan as refused:
            assert "class token" in refused.detail
        else:
            checked_counts(tiny(bare), random_images(2), spec(name, argument))


def test_an_unknown_name_is_refused_with_the_known_names() -> None:
    with pytest.raises(BadPlan, match="evit"):
        reduction.create("warp:9", UntrainedContext(PLAIN))


THIRD_PARTY = '''
"""Drops every other patch after the first block."""
import torch
from foveate.models.layers.reducer import Needs, Reducer
from foveate.models.layers.tokens import Assignment

class EveryOther(Reducer):
    def needs(self, block):
        return Needs.NOTHING if block == 0 else None
    def after(self, tokens, prefix, depth):
        return ((tokens - prefix + 1) // 2 + prefix,) * depth
    def __call__(self, tokens, attention, block):
        rows, prefix = tokens.x.shape[0], tokens.prefix
        kept = torch.cat([torch.arange(prefix), torch.arange(prefix, len(tokens), 2)])
        return Assignment(kept.expand(rows, -1))

def build(argument, context):
    return EveryOther()
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that registers a reducer as `half` and as `none`, which must not replace ours."""
    (tmp_path / "half_of_it.py").write_text(THIRD_PARTY)
    installed = tmp_path / "half_of_it-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: half-of-it\nVersion: 1.0\n")
    entries = "[foveate.reducers]\nhalf = half_of_it:build\nnone = half_of_it:build\n"
    (installed / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    reduction.catalogue.cache_clear()
    yield
    reduction.catalogue.cache_clear()


@pytest.mark.usefixtures("third_party")
def test_a_third_party_reducer_is_available_and_does_not_replace_ours() -> None:
    model, images = tiny(PLAIN), random_images(2)
    assert checked_counts(model, images, "half") == [1 + 18] * PLAIN.depth
    assert run(model, images, "none").tokens.tolist() == [37, 37]


def test_a_reducer_that_is_not_installed_is_not_in_the_catalogue() -> None:
    catalogue: dict[str, Any] = dict(reduction.catalogue())
    assert "half" not in catalogue
