"""The held-out protocol for estimators: fitted anew to everything that was sent, before each block."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legibility.scores._optional import optional
from legibility.scores.imitation._code_length import MIXTURE, kt_code_length, prediction_code_length
from legibility.scores.imitation._decisions import Decisions, no_decisions, sent
from legibility.scores.imitation._distribution import Distribution
from legibility.scores.imitation._estimators import MOST_ROWS, Estimator
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._rows import ESTIMATORS, Array, counted_rows
from legibility.scores.imitation._temperature import match_temperature

_COLDEST, _HOTTEST = 0.05, 100.0
_UNSEEN = -12.0  # logit of a class that didn't occur in what was learnt from


@dataclass(frozen=True, eq=False)
class _Job:
    """One fit: which family, on how many rows, asked about which."""

    family: int
    start: int
    stop: int
    shares: bool


def refit(
    queries: Queries,
    labels: Tensor,
    families: Sequence[Estimator],
    edges: list[int],
    *,
    shares: bool,
    seed: int,
    jobs: int | None,
    advance: Callable[[str], None],
) -> list[tuple[Decisions, Distribution]]:
    """Decisions of all families on `labels`; with `shares` their distributions on the last block too.

    Args:
        queries: that `why_unread` doesn't object to.
        labels: `(N,)` or `(N, T)`, what is sent.
        families: the estimators.
        edges: where blocks end.
        shares: whether the distribution is learnt as well.
        seed: of the fits.
        jobs: fits at a time; None: as many as torch uses threads.
        advance: called with a family's name after each fit.

    Returns:
        by family, in their order.
    """
    rows, counted = counted_rows(queries), queries.counted.cpu()
    target = labels.cpu()[counted]
    log_p = queries.logits[queries.counted].cpu().log_softmax(-1, dtype=torch.float64)
    classes = queries.logits.shape[-1]
    places = _places(queries, edges)
    nothing = Distribution(math.nan, {}, {})
    if len(torch.unique(target)) < 2:
        return [(no_decisions(), nothing) for _ in families]
    last = slice(*places[-2:])
    todo = [_Job(f, start, stop, False) for f in range(len(families)) for start, stop in _asked_about(places)]
    todo += [_Job(f, last.start, last.stop, True) for f in range(len(families)) if shares]

    def work(job: _Job) -> Tensor:
        family, known = families[job.family], slice(0, min(job.start, MOST_ROWS))
        asked = rows[job.start : job.stop]
        if job.shares:
            return _shares(family, rows[known], log_p[known].exp().numpy(), asked, seed)
        return _logits(family, rows[known], target[known], asked, classes, seed)

    found = dict(zip(todo, _in_parallel(work, todo, families, jobs, advance), strict=True))
    results = []
    for f in range(len(families)):
        answers = {job: answer for job, answer in found.items() if job.family == f}
        logits = torch.cat([a for job, a in answers.items() if not job.shares])
        decisions = _decisions(logits, target, places, classes)
        soft = next((a for job, a in answers.items() if job.shares), None)
        if soft is None:
            results.append((decisions, nothing))
            continue
        real = log_p[last]
        divergence = (real.exp() * (real - soft.log())).sum(-1).mean()
        results.append((decisions, Distribution(float(divergence), {}, {})))
    return results


def fits_of(queries: Queries, families: Sequence[Estimator], edges: list[int], shares: bool) -> int:
    """How often `refit` calls `advance`."""
    return len(families) * (len(_asked_about(_places(queries, edges))) + shares)


def _places(queries: Queries, edges: list[int]) -> list[int]:
    """Where blocks end, in positions that count."""
    return [int(queries.counted[:edge].sum()) for edge in edges]


def _asked_about(places: list[int]) -> list[tuple[int, int]]:
    """From where to where each fit is asked about: one block, or all of them once `MOST_ROWS` are known.

    The first half of the first block predicts its second: for the first temperature only.
    """
    starts = sorted({places[0] // 2, *places[:-1]})
    again = [start for start in starts if start >= MOST_ROWS][1:]
    return list(itertools.pairwise([*starts[: len(starts) - len(again)], places[-1]]))


def fitted_logits(family: Estimator, rows: Array, target: Tensor, asked: Array, classes: int, seed: int) -> Tensor:
    """What a family that learnt `target` on `rows` says about others: logits `(n, classes)`, float64."""
    return _logits(family, rows[:MOST_ROWS], target[:MOST_ROWS], asked, classes, seed)


def _logits(family: Estimator, rows: Array, target: Tensor, asked: Array, classes: int, seed: int) -> Tensor:
    asked_count = asked.shape[0]  # a sparse matrix has no length
    counts = torch.bincount(target, minlength=classes).double()
    if int((counts > 0).sum()) < 2:
        return ((counts + 0.5) / (counts.sum() + classes / 2)).log().expand(asked_count, classes)
    fitted = family.classifier(seed).fit(rows, target.numpy())
    logits = torch.full((asked_count, classes), _UNSEEN, dtype=torch.float64)
    for start in range(0, asked_count, MOST_ROWS):
        part = slice(start, start + MOST_ROWS)  # a kernel machine takes a number for each row and pair of classes
        logits[part, torch.as_tensor(fitted.classes_)] = torch.as_tensor(family.scores(fitted, asked[part], classes))
    return logits


def _shares(family: Estimator, rows: Array, shares: Array, asked: Array, seed: int) -> Tensor:
    fitted = family.regressor(seed).fit(rows, shares)
    parts = [fitted.predict(asked[start : start + MOST_ROWS]) for start in range(0, asked.shape[0], MOST_ROWS)]
    said = torch.as_tensor(np.concatenate(parts)).double().clamp(min=0.0)
    total = said.sum(-1, keepdim=True)
    said = torch.where(total > 0, said / total, 1.0 / said.shape[-1])
    return (1.0 - MIXTURE) * said + MIXTURE / said.shape[-1]


def _decisions(logits: Tensor, target: Tensor, places: list[int], classes: int) -> Decisions:
    """From the answers about all positions after half of the first block."""
    first, half = target[: places[0]], places[0] // 2
    blocks = [(len(first), float(kt_code_length(torch.bincount(first, minlength=classes))))]
    wrong, last = 0, 0
    temperature = _calibrated(logits[: places[0] - half], target[half : places[0]])
    for start, stop in itertools.pairwise(places):
        answers, true = logits[start - half : stop - half], target[start:stop]
        blocks.append((len(true), float(prediction_code_length(answers / temperature, true).sum())))
        wrong, last = int((answers.argmax(-1) != true).sum()), len(true)
        temperature = _calibrated(answers, true) if len(true) else temperature
    null = float(kt_code_length(torch.bincount(target, minlength=classes)))
    return sent(blocks, null, wrong / last if last else math.nan)


def _calibrated(logits: Tensor, target: Tensor) -> float:
    """The best temperature for what was sent: a forest is too modest, a kernel machine knows no scale."""
    if not len(target):
        return 1.0
    return min(max(match_temperature(logits, target, 0.0), _COLDEST), _HOTTEST)


def _in_parallel(
    work: Callable[[_Job], Tensor],
    todo: list[_Job],
    families: Sequence[Estimator],
    jobs: int | None,
    advance: Callable[[str], None],
) -> Iterator[Tensor]:
    """Results in order. Threads, for scikit-learn's loops run without Python's lock; each fit with one thread."""
    joblib, threads = optional("joblib", ESTIMATORS), optional("threadpoolctl", ESTIMATORS)
    count = torch.get_num_threads() if jobs is None else jobs
    with threads.threadpool_limits(1), np.errstate(all="ignore"):
        results = joblib.Parallel(n_jobs=count, backend="threading", return_as="generator")(
            joblib.delayed(work)(job) for job in todo
        )
        for job, result in zip(todo, results, strict=True):
            advance(families[job.family].name)
            yield result
