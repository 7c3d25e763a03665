"""Whether the parameters of a file are those of a network: prefixes are removed, differences are named."""

from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.weights.parameter_names import beginning, without_wrappers
from foveate.models.weights.state_dict import COUNTERS

_BATCHES = "num_batches_tracked"
"""A counter of batch norms that old files lack. It has no influence on answers."""


def names_of_network(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, prefix: str | None
) -> dict[str, Tensor]:
    """The parameters under the network's names, without what wrappers such as DDP put before them.

    prefix: read the parameters that begin with it alone. Raises SetupError when there are none, or when the
    file holds several such networks.
    """
    state = without_wrappers(state, where)
    state = {name: value for name, value in state.items() if name not in COUNTERS}
    if prefix is None:
        prefix = _shared_prefix(state, expected, where)
    chosen = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
    if not chosen:
        raise SetupError(f"{where} has no parameters under the prefix {prefix!r}; {beginning(state)}")
    return chosen


def _shared_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> str:
    """What precedes the network's names in the file: the prefix under which most of them are."""
    counts = {"": len(expected.keys() & state.keys())}
    # The longest names are those of the middle of the network, which occur once in it.
    for anchor in sorted(expected, key=len, reverse=True)[:3]:
        for name in state:
            if name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                counts[prefix] = sum(f"{prefix}{each}" in state for each in expected)
    most = max(counts.values())
    complete = sorted(prefix for prefix, count in counts.items() if count == most)
    if most and len(complete) > 1:
        raise SetupError(
            f"{where} holds {len(complete)} networks, under {', '.join(map(repr, complete))}: name one with "
            "--prefix"
        )
    return complete[0]


def check_fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, architecture: str
) -> None:
    """Raise SetupError, which names the first parameter that differs, unless all of them fit."""
    actual = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    names = [*wanted, *(name for name in actual if name not in wanted)]  # in the order of the network
    wrong = [
        n for n in names if actual.get(n) != wanted.get(n) and not (n.endswith(_BATCHES) and n not in actual)
    ]
    if wrong:
        shapes = f"{actual.get(wrong[0], 'nothing')} where {wanted.get(wrong[0], 'nothing')} fits"
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise SetupError(f"{where} does not fit {architecture}: {wrong[0]} is {shapes}{more}")
