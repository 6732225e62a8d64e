"""The fits of the held-out protocol: networks one by one or in processes, estimators in threads, and how far they are."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from legibility.scores.imitation._decisions import Decisions, imitate_decisions
from legibility.scores.imitation._distribution import Distribution, imitate_distribution
from legibility.scores.imitation._estimators import Estimator
from legibility.scores.imitation._families import Family, Training, isolated
from legibility.scores.imitation._processes import in_processes, networks_at_a_time
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._refitted import fits_of, refit
from legibility.scores.imitation._rows import why_unread
from legibility.students import Student

Progress = Callable[[str, float], None]
Result = TypeVar("Result")


def imitated(
    queries: Queries,
    labels: Tensor,
    student: Student,
    edges: list[int],
    training: Training,
    advance: Callable[[], None],
) -> tuple[Decisions, Distribution, float]:
    """What one network learnt, and the seconds that took."""
    started = time.perf_counter()
    decisions = imitate_decisions(queries, labels, student, edges, training, advance)
    distribution = imitate_distribution(queries, student, edges[-2], training, advance)
    return decisions, distribution, time.perf_counter() - started


def _alone(work: Callable[..., Result], queries: Queries, *arguments: Any) -> Result:
    with isolated(queries.inputs.device):
        return work(queries, *arguments)


def _unreported() -> None:
    """Another process can't report its steps to this one."""


class Work:
    """What is to be done: fits the estimators, and turns steps and fits into about a hundred reports of progress."""

    def __init__(
        self,
        queries: Queries,
        labels: Tensor,
        students: Sequence[Family],
        edges: list[int],
        training: Training,
        jobs: int | None,
        report: Progress | None,
    ) -> None:
        self.queries, self.labels, self.edges, self.jobs, self.training = queries, labels, edges, jobs, training
        self.students = students
        self.at_a_time = networks_at_a_time(jobs, queries.inputs.device)
        self.estimators = [student for student in students if isinstance(student, Estimator)]
        self.networks = len(students) - len(self.estimators)
        self.unread: str | None = why_unread(queries) if self.estimators else None
        self.report, self.total, self.done, self.name, self.seconds = report, 1, 0, "", 0.0

    def fits(self, *, shares: bool) -> int:
        """How many the estimators need."""
        return 0 if self.unread is not None else fits_of(self.queries, self.estimators, self.edges, shares)

    def refit(self, *, shares: bool) -> Iterator[tuple[Decisions, Distribution]]:
        """What each estimator learnt, in order."""
        if not self.fits(shares=shares):
            return iter(())
        started = time.perf_counter()
        results = refit(
            self.queries, self.labels, self.estimators, self.edges,
            shares=shares, seed=self.training.seed, jobs=self.jobs, advance=self._fitted,
        )  # fmt: skip
        self.seconds = (time.perf_counter() - started) / len(self.estimators)
        return iter(results)

    def train(self, names: Sequence[str], work: Callable[..., Result], steps: int) -> Iterator[Result]:
        """What `work` makes of each network, in order, each in a random state of its own."""
        given = [
            (name, (self.queries, self.labels, student, self.edges, self.training))
            for name, student in zip(names, self.students, strict=True)
            if not isinstance(student, Estimator)
        ]
        if self.at_a_time == 1:
            for name, arguments in given:
                self.name = name
                yield _alone(work, *arguments, self.advance)
            return
        fits = [(work, *arguments, _unreported) for _, arguments in given]
        results = in_processes(_alone, fits, self.at_a_time)
        for (name, _), result in zip(given, results, strict=True):
            self.name = name
            self.advance(steps)
            yield result

    def _fitted(self, name: str) -> None:
        self.name = name
        self.advance()

    def advance(self, steps: int = 1) -> None:
        """So many steps or fits more are done."""
        self.done += steps
        often = max(1, self.total // 100)
        if self.report is not None and (steps >= often or self.done % often == 0 or self.done == self.total):
            self.report(self.name, self.done / self.total)
