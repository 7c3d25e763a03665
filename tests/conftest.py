"""What every test shares."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small models many times slower on a busy machine."""
    import torch  # here, so that tests of the gateway do without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def inference_on_one_thread(one_thread: None) -> Iterator[None]:
    import torch

    with torch.inference_mode():
        yield
