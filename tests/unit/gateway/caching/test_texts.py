"""The cache of text embeddings: one run a text, bounded memory, failures, and requests that leave."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from foveate.core.errors import BadRequest, FoveateError
from foveate.core.metrics import Metrics
from foveate.core.model import ZeroShot
from foveate.gateway.caching.texts import ENTRY_BYTES, MAX_RUNNING, TextEmbedding, TextEmbeddings

pytestmark = pytest.mark.anyio
MODEL = ZeroShot("text", "digest", "{}", 1.0)
OTHER = ZeroShot("other", "another digest", "{}", 1.0)


class TextModel:
    """Embeds a text as its length and its first letter. It can be held, and counts what it runs."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.gate, self.running, self.most = asyncio.Event(), 0, 0
        self.gate.set()
        self.cancelled: list[str] = []

    async def embed(self, zero_shot: ZeroShot, tenant: str, text: str) -> TextEmbedding:
        self.runs[text] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        finally:
            self.running -= 1
        if text == "bad":
            raise BadRequest("a bad text")
        return np.array([len(text), ord(text[0]) + 1000 * (zero_shot is OTHER)], np.float32)


def cache(model: TextModel, max_bytes: int = 10**6) -> tuple[TextEmbeddings, Metrics]:
    metrics = Metrics()
    return TextEmbeddings(model.embed, max_bytes, metrics), metrics


def counted(metrics: Metrics, result: str) -> float | None:
    labels = {"cache": "texts", "result": result}
    return metrics.registry.get_sample_value("foveate_cache_requests_total", labels)


async def started(*tasks: asyncio.Task[object]) -> None:
    """Let the tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_rows_are_in_the_order_of_the_texts_and_come_from_one_run() -> None:
    model = TextModel()
    texts, metrics = cache(model)
    first = await texts.rows(MODEL, "", ["cat", "horse"])
    second = await texts.rows(MODEL, "", ["horse", "ox", "cat"])
    assert first[:, 0].tolist() == [3, 5] and second[:, 0].tolist() == [5, 2, 3]
    assert model.runs == {"cat": 1, "horse": 1, "ox": 1}
    assert (counted(metrics, "hit"), counted(metrics, "miss")) == (2, 3)


async def test_models_have_entries_of_their_own() -> None:
    texts, _ = cache(model := TextModel())
    assert (await texts.rows(MODEL, "", ["cat"])).tolist() != (await texts.rows(OTHER, "", ["cat"])).tolist()
    assert model.runs == {"cat": 2}


async def test_tenants_share_no_entries() -> None:
    texts, metrics = cache(model := TextModel())
    for tenant in ("a", "b", "a"):
        await texts.rows(MODEL, tenant, ["cat"])
    assert model.runs == {"cat": 2}
    assert (counted(metrics, "hit"), counted(metrics, "miss")) == (1, 2)


async def test_requests_at_the_same_time_share_a_run() -> None:
    texts, metrics = cache(model := TextModel())
    model.gate.clear()
    tasks = [asyncio.create_task(texts.rows(MODEL, "", ["cat", name])) for name in ("ox", "dog")]
    await started()
    model.gate.set()
    for task in tasks:
        assert (await task)[0, 0] == 3
    assert model.runs == {"cat": 1, "ox": 1, "dog": 1}
    assert counted(metrics, "coalesced") == 1


async def test_a_request_that_leaves_does_not_end_the_run_of_others() -> None:
    texts, _ = cache(model := TextModel())
    model.gate.clear()
    leaving, staying = (asyncio.create_task(texts.rows(MODEL, "", ["cat"])) for _ in range(2))
    await started()
    leaving.cancel()
    await started()
    model.gate.set()
    assert (await staying)[0, 0] == 3
    assert model.runs == {"cat": 1} and not model.cancelled


async def test_a_text_without_requests_is_given_up() -> None:
    texts, _ = cache(model := TextModel())
    model.gate.clear()
    task = asyncio.create_task(texts.rows(MODEL, "", [f"text {number}" for number in range(3 * MAX_RUNNING)]))
    await started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await started()
    assert len(model.cancelled) == MAX_RUNNING and not model.running and not texts._flights
    model.gate.set()
    assert (await texts.rows(MODEL, "", ["text 1"])).shape == (1, 2), "the next request runs it again"


async def test_few_texts_run_at_a_time() -> None:
    texts, _ = cache(model := TextModel())
    model.gate.clear()
    task = asyncio.create_task(texts.rows(MODEL, "", [f"text {number}" for number in range(1000)]))
    await started()
    model.gate.set()
    assert (await task).shape == (1000, 2)
    assert model.most == MAX_RUNNING


async def test_failure_belongs_to_the_requests_with_this_text() -> None:
    texts, _ = cache(TextModel())
    results = await asyncio.gather(
        *(texts.rows(MODEL, "", names) for names in (["cat", "bad"], ["bad", "cat", "ox"], ["cat"])),
        return_exceptions=True,
    )
    assert isinstance(results[0], FoveateError) and isinstance(results[1], FoveateError)
    assert isinstance(results[2], np.ndarray)
    assert not texts._flights
    with pytest.raises(BadRequest, match="a bad text"):
        await texts.rows(MODEL, "", ["bad"])


async def test_memory_is_bounded_and_the_oldest_text_goes_first() -> None:
    entry = ENTRY_BYTES + 4 * 3 + 8
    texts, _ = cache(model := TextModel(), 2 * entry)
    await texts.rows(MODEL, "", ["cat", "dog"])
    await texts.rows(MODEL, "", ["cat"])
    await texts.rows(MODEL, "", ["fox"])
    assert texts.bytes == 2 * entry
    await texts.rows(MODEL, "", ["cat"])
    assert model.runs == {"cat": 1, "dog": 1, "fox": 1}
    await texts.rows(MODEL, "", ["dog"])
    assert model.runs["dog"] == 2


async def test_zero_bytes_keep_nothing() -> None:
    texts, _ = cache(model := TextModel(), 0)
    for _ in range(2):
        assert (await texts.rows(MODEL, "", ["cat"]))[0, 0] == 3
    assert model.runs == {"cat": 2} and texts.bytes == 0


async def test_entry_does_not_hold_the_batch_that_it_was_a_row_of() -> None:
    batch = np.ones((100, 2), np.float32)

    async def embed(zero_shot: ZeroShot, tenant: str, text: str) -> TextEmbedding:
        row: TextEmbedding = batch[7]
        return row

    texts = TextEmbeddings(embed, 10**6, Metrics())
    await texts.rows(MODEL, "", ["cat"])
    (entry,) = texts._entries.values()
    assert entry.base is None
