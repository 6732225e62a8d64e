"""The held-out protocol for estimators: fitted anew to everything that was sent, before each block."""

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legibility.scores.imitation._code_length import MIXTURE, kt_code_length, prediction_code_length
from legibility.scores.imitation._decisions import Decisions, no_decisions, sent
from legibility.scores.imitation._distribution import Distribution
from legibility.scores.imitation._estimators import MOST_ROWS, Array, Estimator
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._temperature import match_temperature

_COLDEST, _HOTTEST = 0.05, 100.0
_UNSEEN = -12.0  # logit of a class that didn't occur in what was learnt from


def why_unread(queries: Queries) -> str | None:
    """Why estimators can't read these queries; None if they can."""
    if not queries.inputs.is_floating_point():
        return "estimators read rows of numbers, not tokens"
    if queries.logits.ndim != 2:
        return "estimators give one answer per row, not one per position"
    return None


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
        labels: `(N,)`, what is sent.
        families: the estimators.
        edges: where blocks end.
        shares: whether the distribution is learnt as well.
        seed: of the fits.
        jobs: fits at a time; None: as many as torch uses threads.
        advance: called with a family's name after each fit.

    Returns:
        by family, in their order.
    """
    counted = queries.counted.cpu()
    rows = _rows(queries)[counted.numpy()]
    target = labels.cpu()[counted]
    log_p = queries.logits[queries.counted].cpu().log_softmax(-1, dtype=torch.float64)
    classes = queries.logits.shape[-1]
    places = [int(counted[:edge].sum()) for edge in edges]
    blocks = list(itertools.pairwise(places))
    nothing = Distribution(math.nan, {}, {})
    if len(torch.unique(target)) < 2:
        return [(no_decisions(), nothing) for _ in families]
    # The first half of the first block predicts its second: for the first temperature only.
    asked_about = [(places[0] // 2, places[0]), *blocks]
    todo = [_Job(f, start, stop, False) for f in range(len(families)) for start, stop in asked_about]
    todo += [_Job(f, *blocks[-1], True) for f in range(len(families)) if shares]

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
        decisions = _decisions([a for job, a in answers.items() if not job.shares], target, places, classes)
        soft = next((a for job, a in answers.items() if job.shares), None)
        if soft is None or not len(soft):
            results.append((decisions, nothing))
            continue
        real = log_p[slice(*blocks[-1])]
        divergence = (real.exp() * (real - soft.log())).sum(-1).mean()
        results.append((decisions, Distribution(float(divergence), {}, {})))
    return results


def fits_of(families: Sequence[Estimator], edges: list[int], shares: bool) -> int:
    """How often `refit` calls `advance`."""
    return len(families) * (len(edges) + shares)


def fitted_logits(family: Estimator, rows: Array, target: Tensor, asked: Array, classes: int, seed: int) -> Tensor:
    """What a family that learnt `target` on `rows` says about others: logits `(n, classes)`, float64."""
    return _logits(family, rows[:MOST_ROWS], target[:MOST_ROWS], asked, classes, seed)


def standardised(inputs: Tensor, like: Tensor | None = None) -> Array:
    """Rows of numbers with mean 0 and variance 1 by feature, of `like` if given."""
    flat, base = (t.detach().cpu().double().flatten(1) for t in (inputs, inputs if like is None else like))
    spread = base.std(0, correction=0)
    found: Array = ((flat - base.mean(0)) / torch.where(spread > 0, spread, 1.0)).numpy()
    return found


def _rows(queries: Queries) -> Array:
    inputs = queries.inputs
    if queries.positions_to_read is not None:
        shape = (*queries.positions_to_read.shape, *[1] * (inputs.ndim - 2))
        inputs = inputs.where(queries.positions_to_read.to(inputs.device).view(shape), 0.0)
    return standardised(inputs)


def _logits(family: Estimator, rows: Array, target: Tensor, asked: Array, classes: int, seed: int) -> Tensor:
    if not len(asked):
        return torch.zeros(0, classes, dtype=torch.float64)
    counts = torch.bincount(target, minlength=classes).double()
    if int((counts > 0).sum()) < 2:
        return ((counts + 0.5) / (counts.sum() + classes / 2)).log().expand(len(asked), classes)
    fitted = family.classifier(seed).fit(rows, target.numpy())
    logits = torch.full((len(asked), classes), _UNSEEN, dtype=torch.float64)
    logits[:, torch.as_tensor(fitted.classes_)] = torch.as_tensor(family.scores(fitted, asked, classes))
    return logits


def _shares(family: Estimator, rows: Array, shares: Array, asked: Array, seed: int) -> Tensor:
    said = torch.as_tensor(family.regressor(seed).fit(rows, shares).predict(asked)).double().clamp(min=0.0)
    total = said.sum(-1, keepdim=True)
    said = torch.where(total > 0, said / total, 1.0 / said.shape[-1])
    return (1.0 - MIXTURE) * said + MIXTURE / said.shape[-1]


def _decisions(answers: list[Tensor], target: Tensor, places: list[int], classes: int) -> Decisions:
    first = target[: places[0]]
    blocks = [(len(first), float(kt_code_length(torch.bincount(first, minlength=classes))))]
    wrong, last = 0, 0
    temperature = _calibrated(answers[0], target[places[0] // 2 : places[0]])
    for logits, (start, stop) in zip(answers[1:], itertools.pairwise(places), strict=True):
        true = target[start:stop]
        blocks.append((len(true), float(prediction_code_length(logits / temperature, true).sum())))
        wrong, last = int((logits.argmax(-1) != true).sum()), len(true)
        temperature = _calibrated(logits, true) if len(true) else temperature
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
    joblib, threads = importlib.import_module("joblib"), importlib.import_module("threadpoolctl")
    count = torch.get_num_threads() if jobs is None else jobs
    with threads.threadpool_limits(1), np.errstate(all="ignore"):
        results = joblib.Parallel(n_jobs=count, backend="threading", return_as="generator")(
            joblib.delayed(work)(job) for job in todo
        )
        for job, result in zip(todo, results, strict=True):
            advance(families[job.family].name)
            yield result
