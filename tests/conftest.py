"""What every test has: one thread, which is fastest for tiny models and the same arithmetic as that of test ranks."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _imported_for_good() -> None:
    """What was imported stays: the garbage collector needn't look at its million objects again and again."""
    gc.collect()
    gc.freeze()
