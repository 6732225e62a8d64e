"""Held-out imitation: how well other architectures, fitted from scratch, learn to answer like the primary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from legibility.scores.imitation._decisions import imitate_decisions, no_decisions, steps_of_decisions
from legibility.scores.imitation._distribution import Distribution
from legibility.scores.imitation._estimators import Estimator
from legibility.scores.imitation._families import Family, Training, block_edges, family_names, steps_of
from legibility.scores.imitation._family_imitation import FamilyImitation
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._work import Progress, Work, imitated

CONSTANT_BELOW = 1e-3
"""A primary whose `KL(p || marginal)` is below this, in nats, counts as constant."""


def held_out_imitation(
    queries: Queries,
    students: Sequence[Family],
    *,
    twin: Mapping[str, float] | None = None,
    blocks: int = 5,
    passes: int = 4,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    width: int = 32,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, FamilyImitation]:
    """Let each architecture learn the primary from scratch, and measure how far it gets.

    Protocol `held-out-imitation/1`. The queries, in the order given, are cut into blocks that double: they end at
    `N/16, N/8, N/4, N/2, N` for 5 blocks. Per family two networks are trained, with the same initialisation, Adam, and a
    learning rate that falls linearly to 0 in each round of training:

    * the student of decisions. Block 1 sends the primary's top-1 by the KT code. Before each further block the student
      is trained for `passes` epochs on the top-1 of all earlier blocks (cross-entropy), then it codes the block's with
      `-log2 [(1 - eta) q + eta/K]`, `eta = 1e-3`. The temperature of `q` is the best one for the block before, at least
      1. The bits add up to the prequential code length PCL. Between blocks the student goes on from where it stood
      (warm start), which a receiver can do as well: the code is valid, it needs nothing that wasn't sent. Top-1 don't
      change when the primary's logits are scaled, so neither do `saving` and `disagreement`.
    * the student of the distribution. It is trained for `2 passes` epochs on the first half of the queries (all blocks
      but the last), with forward KL to the primary's full distribution plus, for each tap, the mean squared error in
      units of the tap's variance. On the last block it gives `kl`, `relative_kl`, `fvu` and `cka`.

    An estimator (`default_estimators`: forest, nearest neighbours, kernel machine, bounded tree) follows the same
    protocol, but is fitted anew to all earlier blocks, at most 4096 rows, before each block. Its temperature is the best
    one for the block before, at least .05. For `kl` it is fitted to the primary's probabilities. It learns no taps.
    Of tokens `i` with an answer each it reads, at position `t`, `[e(i_t), 2^(-1/2) e(i_(t-1)), ..., 2^(-7/2) e(i_(t-7))]`
    times one factor for all: `e` is one-hot; what stands before the first token, and negative ids (padding), is one token
    more. In squared distances a token weighs more than all before it, so the nearest rows have the longest common ending.
    The 4096 rows are positions that count. Tokens with one answer for all, numbers with one per position, and more than
    256 answers to a token are not for it: all its scores are NaN then.

    Compare only results of the same version, queries, students, settings and taps: learning the taps as well changes
    how well a student learns the output.

    A primary whose top-1 never changes, or whose `KL(p || marginal)` is below 1e-3 nats, is constant: all its scores are NaN.

    Card:
        Range and direction: of each number in `FamilyImitation`; saving up, code length, KL and disagreement down.
        Cost: per network about `passes` times twice the queries and `2 passes` times half of them in optimizer steps of
        `batch_size`; per estimator one fit for each block and one more. Seconds to minutes.
        Controls: the twin on true labels (`held_out_twin`), the primary untrained, its answers permuted, and for `kl` the
        temperature that costs as much task loss (`match_temperature`).
        Gamed by: softening (`kl` only); decisions that are simple and wrong; training with the families that measure.
        Not trained on as long as none of these architectures was trained with the primary.

    The global random state is neither used nor changed. On CPU the result is a function of the arguments.

    Args:
        queries: the primary's answers.
        students: the families: architectures, which must read such inputs, and estimators.
        twin: what `held_out_twin` gave for these queries, students and settings; without it `adjusted_saving` is NaN.
        blocks: number of blocks.
        passes: epochs over the queries seen so far, before each block.
        batch_size: queries per optimizer step.
        learning_rate: Adam's, at the start of each round of training.
        width: hidden size of the students that don't fix their own.
        seed: of initialisation and shuffling, the same for all families.
        jobs: families fitted at a time, networks in processes (on the CPU), estimators in threads; the numbers are the same
            as with 1. None: one network, and as many estimators as torch uses threads.
        progress: called with the family's name and the share of all work that is done, 0 to 1.

    Returns:
        by family, in the order of `students`: `mlp`, a second of its kind `mlp_2`.

    Raises:
        TypeError: for tensors of the wrong kind.
        ValueError: for no student, students that don't read such inputs, a twin of other students, taps that aren't
            finite, a mask that empties one half of the queries, or settings out of range.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries, held_out_imitation
        >>> from legibility.students import LinearStudent
        >>> inputs = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> linear_primary = Queries(inputs=inputs, logits=inputs @ torch.ones(4, 3).triu())
        >>> found = held_out_imitation(linear_primary, [LinearStudent()])
        >>> found["linear"].relative_kl < 0.1, found["linear"].saving > 0.6
        (True, True)

    Source: H1 of this project's scores; prequential coding as in Blier and Ollivier, "The description length of deep
    learning models", 2018, and Voita and Titov, "Information-theoretic probing", 2020.
    """
    queries = queries.together()
    training = Training(passes, batch_size, learning_rate, width, seed)
    edges = block_edges(len(queries), blocks)
    names = _names(students)
    if twin is not None and not set(names) <= set(twin):
        raise ValueError(f"`twin` must have the families {names}, got {sorted(twin)}: give it the same students.")
    first, positions = edges[-2], int(queries.counted.sum())
    if not bool(queries.counted[:first].any()) or not bool(queries.counted[first:].any()):
        raise ValueError(f"`mask` must leave positions both before and after query {first}: the rest is learnt from.")
    constant = why_constant(queries)
    if constant is not None:
        reasons = dict.fromkeys(_SCORES + tuple(f"fvu/{tap}" for tap in queries.taps), constant)
        fvu = dict.fromkeys(queries.taps, math.nan)
        return {name: FamilyImitation(name, first, positions, fvu=fvu, reasons=reasons) for name in names}
    labels = queries.logits.argmax(-1)
    marginal_kl = _marginal_kl(queries, slice(0, first), slice(first, None))
    steps = steps_of_decisions(edges, training) + steps_of(first, 2 * passes, batch_size)
    work = Work(queries, labels, students, edges, training, jobs, progress)
    work.total = work.networks * steps + work.fits(shares=True)
    refitted, trained = work.refit(shares=True), work.train(names, imitated, steps)
    found = {}
    for name, student in zip(names, students, strict=True):
        decisions, distribution, seconds = no_decisions(), Distribution(math.nan, {}, {}), work.seconds
        unread = work.unread if isinstance(student, Estimator) else None
        if not isinstance(student, Estimator):
            decisions, distribution, seconds = next(trained)
        elif unread is None:
            decisions, distribution = next(refitted)
        scores = asdict(decisions)
        scores |= {"kl": distribution.kl, "relative_kl": distribution.kl / marginal_kl}
        scores["adjusted_saving"] = math.nan if twin is None else decisions.saving - twin[name]
        scores = {score: _finite(value) for score, value in scores.items()}
        fvu = {tap: _finite(value) for tap, value in distribution.fvu.items()}
        found[name] = FamilyImitation(
            family=name,
            first_scored=first,
            positions=positions,
            **scores,
            fvu=fvu,
            predicted_taps=distribution.predicted_taps,
            by_position=distribution.by_position,
            decided=distribution.decided,
            cka=distribution.cka,
            seconds=seconds,
            reasons=_why_missing(scores, fvu, twin is None, unread),
        )
    return found


def held_out_twin(
    queries: Queries,
    students: Sequence[Family],
    *,
    blocks: int = 5,
    passes: int = 4,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    width: int = 32,
    seed: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """`S(labels)`: what the same students save on the true labels, by the protocol of `held_out_imitation`.

    It depends on inputs, labels and settings, not on the primary: compute it once for all primaries of a task.

    Args:
        queries: with labels; of `logits` only the number of classes is used.
        students: the families; they and all settings as in `held_out_imitation`.
        blocks: number of blocks.
        passes: epochs over the queries seen so far, before each block.
        batch_size: queries per optimizer step.
        learning_rate: Adam's, at the start of each round of training.
        width: hidden size of the students that don't fix their own.
        seed: of initialisation and shuffling.
        jobs: families fitted at a time.
        progress: called with the family's name and the share of all work that is done.

    Returns:
        the saving by family; NaN where the labels never change.

    Raises:
        ValueError: if `queries.labels` is None; else as `held_out_imitation`.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries, held_out_twin
        >>> from legibility.students import LinearStudent
        >>> inputs = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> queries = Queries(inputs=inputs, logits=torch.zeros(256, 2), labels=(inputs[:, 0] > 0).long())
        >>> held_out_twin(queries, [LinearStudent()])["linear"] > 0.5
        True
    """
    if queries.labels is None:
        raise ValueError("`queries.labels` must be the true labels for a twin, got None: leave `adjusted_saving` out.")
    true_labels = queries.labels.to(queries.inputs.device)
    queries = queries.together()
    training = Training(passes, batch_size, learning_rate, width, seed)
    edges = block_edges(len(queries), blocks)
    names = _names(students)
    labels = torch.where(queries.counted, true_labels, 0)
    work = Work(queries, labels, students, edges, training, jobs, progress)
    steps = steps_of_decisions(edges, training)
    work.total = work.networks * steps + work.fits(shares=False)
    refitted, trained = work.refit(shares=False), work.train(names, imitate_decisions, steps)
    savings = {}
    for name, student in zip(names, students, strict=True):
        if not isinstance(student, Estimator):
            savings[name] = next(trained).saving
        else:
            savings[name] = math.nan if work.unread is not None else next(refitted)[0].saving
    return savings


_DECIDED = ("disagreement", "code_length", "null_code_length", "saving", "adjusted_saving", "surplus")
_SCORES = ("kl", "relative_kl", *_DECIDED)


def _names(students: Sequence[Family]) -> list[str]:
    if not students:
        raise ValueError("`students` must hold at least one architecture, got none: see `held_out_students`.")
    return family_names(students)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def why_constant(queries: Queries) -> str | None:
    """Why there is nothing to learn from these answers; None if there is."""
    top = queries.logits.argmax(-1)[queries.counted]
    if bool((top == top[0]).all()):
        return "the primary is constant: its top-1 never changes"
    divergence = _marginal_kl(queries, slice(None), slice(None))
    if divergence < CONSTANT_BELOW:
        return f"the primary is constant: KL(p || marginal) is {divergence:.2g} nats"
    return None


def _marginal_kl(queries: Queries, of: slice, scored: slice) -> float:
    """Mean `KL(p || m)` in nats on the queries `scored`, `m` the mean of `p` over the queries `of`."""
    log_p = queries.logits[of][queries.counted[of]].log_softmax(-1, dtype=torch.float64)
    marginal = log_p.logsumexp(0) - math.log(log_p.shape[0])
    log_p = queries.logits[scored][queries.counted[scored]].log_softmax(-1, dtype=torch.float64)
    return float((log_p.exp() * (log_p - marginal)).sum(-1).mean())


def _why_missing(
    scores: Mapping[str, float], fvu: Mapping[str, float], no_twin: bool, unread: str | None
) -> dict[str, str]:
    why = unread or "the student diverged"
    reasons = {name: why for name, value in scores.items() if math.isnan(value)}
    unexplained = reasons.get("kl", "no unit of the tap varies")
    reasons |= {f"fvu/{tap}": unexplained for tap, value in fvu.items() if math.isnan(value)}
    if no_twin and unread is None:
        reasons["adjusted_saving"] = "no twin: it needs the true labels (`held_out_twin`)"
    return reasons
