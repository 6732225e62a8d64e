"""Fits of networks side by side, each in a process of its own: Python's lock would keep threads waiting for each other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from legibility.scores._optional import optional

Result = TypeVar("Result")


def in_processes(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """`work(*arguments)` of each, in order, `jobs` at a time; the same numbers as one after the other.

    Each process computes with as many threads as this one, for sums depend on how they are split.

    Args:
        work: a function of a module.
        arguments: of each call; they are pickled.
        jobs: processes, at least 1; with 1, or a single call, everything happens here.

    Raises:
        ImportError: without joblib, for more than one.
    """
    if jobs == 1 or len(arguments) < 2:
        for each in arguments:
            yield work(*each)
        return
    joblib = optional("joblib", "`jobs` above 1")
    threads = torch.get_num_threads()
    # Tensors as they are: memory-mapped arrays would be read-only.
    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator", max_nbytes=None)
    yield from parallel(joblib.delayed(_with_threads)(threads, work, each) for each in arguments)


def _with_threads(threads: int, work: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    torch.set_num_threads(threads)
    return work(*arguments)


def networks_at_a_time(jobs: int | None, device: torch.device) -> int:
    """How many networks are fitted at a time: `jobs` on the CPU, else one, for processes don't share a GPU's tensors.

    Raises:
        ValueError: for fewer than 1.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, got {jobs}.")
    return 1 if jobs is None or device.type != "cpu" else jobs
