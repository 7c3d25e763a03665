"""The device of the bench, and the engines that serve on it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.runner import ChatModel
from foveate.engine.device import DeviceExecutor

POLL_S = 0.005


class SharedDevice(DeviceExecutor):
    """A device that outlives its engines.

    transformers' `generate` runs on its thread too, so that both sides use the same threads of torch.
    """

    def close(self) -> None:
        """Keep the thread for the next engine."""

    def shut_down(self) -> None:
        """End the thread."""
        super().close()


@asynccontextmanager
async def serving(model: ChatModel, device: SharedDevice, **options: Any) -> AsyncIterator[ChatEngine]:
    """An engine that serves within the block. Afterwards all slots of the model are free again.

    options: as of `ChatEngine`.
    """
    engine = ChatEngine(model, device=device, **options)
    engine.start()
    try:
        yield engine
    finally:
        await engine.drain()
        while model.free_slots < model.slots:  # noqa: ASYNC110 -- there is no event for it
            await asyncio.sleep(POLL_S)
        await engine.close()
