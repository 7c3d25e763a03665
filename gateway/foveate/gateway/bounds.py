"""How long whatever comes before admission may take."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from foveate.core.errors import BodyTooSlow, DeadlineExceeded


@asynccontextmanager
async def within(deadline: float | None, patience_s: float | None = None) -> AsyncIterator[None]:
    """Bound what comes before admission; after it the engine does.

    Raises DeadlineExceeded at the deadline, BodyTooSlow once `patience_s` is over before it.
    """
    left = None if deadline is None else deadline - monotonic()
    impatient = patience_s is not None and (left is None or patience_s < left)
    try:
        async with asyncio.timeout(patience_s if impatient else left):
            yield
    except TimeoutError:
        if impatient:
            raise BodyTooSlow(f"the body did not arrive within {patience_s:g} s") from None
        raise DeadlineExceeded("the deadline passed before the picture was read") from None
