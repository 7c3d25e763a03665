"""Query parameters: flags and counts."""

import pytest

from foveate.core.errors import BadRequest
from foveate.gateway.routes.query import read_flag, read_top_k
from tests.support.gateway import assert_problem, serving_fakes

pytestmark = pytest.mark.anyio


def test_parameters_have_defaults() -> None:
    assert read_flag("overlay", None) is False
    assert read_top_k(None) == 5


def test_valid_parameters_are_read() -> None:
    assert read_flag("overlay", "true") is True
    assert read_flag("overlay", "false") is False
    assert (read_top_k("1"), read_top_k("999999")) == (1, 999999)
    with pytest.raises(BadRequest, match="overlay must be true or false"):
        read_flag("overlay", "1")


@pytest.mark.parametrize("top_k", ["0", "-1", "many", "1.5", "٣"])
async def test_invalid_top_k_is_a_400(top_k: str) -> None:
    async with serving_fakes() as gateway:
        assert_problem(await gateway.post("/classify", query={"top_k": top_k}), 400, "top_k")


@pytest.mark.parametrize("value", ["", "1", "True", "yes", "out.png"])
async def test_invalid_explain_is_a_400(value: str) -> None:
    async with serving_fakes() as gateway:
        assert_problem(
            await gateway.post("/classify", query={"explain": value}), 400, "explain must be true or false"
        )
    assert gateway.runner.batches == []
