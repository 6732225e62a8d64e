"""Tree path length: how many questions a person would have to answer to follow the primary's decisions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from legibility.scores._optional import optional
from legibility.scores.imitation._held_out import why_constant
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._rows import why_unread

DEEPEST = 16
_LEAST_ROWS = 64


@dataclass(frozen=True)
class TreePath:
    """What `tree_path_length` found. Values that couldn't be taken are NaN, and `reason` says why.

    Attributes:
        value: mean number of questions on the way to a decision, lower = simpler.
        leaves: of the tree.
        agreement: of the tree with the primary on queries that it wasn't fitted to.
        twin: the same number for a tree on the true labels, with equal agreement with them; NaN without labels.
        best_agreement: the highest agreement of any tree that was tried.
        reason: why there is no value.
    """

    value: float = math.nan
    leaves: int = 0
    agreement: float = math.nan
    twin: float = math.nan
    best_agreement: float = math.nan
    reason: str | None = None


def tree_path_length(queries: Queries, *, fidelity: float = 0.9, seed: int = 0) -> TreePath:
    """Length of the paths in the smallest tree that agrees with the primary on a share `fidelity` of unseen queries.

    Decision trees of at most 16 questions in a row learn the primary's top-1 from the first half of the queries, best
    split first, with 2, 3, 4, 6, 8, 12, 16, ... leaves. The first whose agreement on the second half reaches `fidelity`
    counts: the mean length of its paths there.

    Card:
        Range and direction: [1, 16], lower = simpler decisions, at that fidelity only: compare at equal `fidelity`. NaN if
        no tree reaches it, which is the usual answer for images, and for a constant primary. Independent of temperature
        and of rescaling features.
        Cost: up to 24 tree fits, seconds. Control: a tree on the true labels (inside).
        Gamed by: simple wrong decisions; compare at one task loss. A class that is rare is cheap to ignore: a fidelity
        below the commonest decision's share is met by hardly any question, and gives NaN.
        Not trained on, unless a tree took part in training.

    Args:
        queries: with rows of numbers and one answer each, at least 64.
        fidelity: agreement to be reached, in (0, 1].
        seed: breaks ties between splits.

    Returns:
        the length and its control.

    Raises:
        ImportError: without scikit-learn (extra `sklearn`).
        ValueError: for fewer than 64 queries that count, or `fidelity` out of range.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries, tree_path_length
        >>> inputs = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> corner = (inputs[:, 0] > 0) & (inputs[:, 1] > 0)  # one question for half of them, two for the others
        >>> found = tree_path_length(Queries(inputs, torch.stack([~corner, corner], 1) * 5.0), fidelity=0.95)
        >>> found.leaves, round(found.value, 1)
        (3, 1.5)

    Source: Wu et al., "Beyond sparsity: tree regularization of deep models for interpretability", 2018.
    """
    if not 0.0 < fidelity <= 1.0:
        raise ValueError(f"`fidelity` must be in (0, 1], got {fidelity}.")
    reason = (
        why_unread(queries) if queries.inputs.is_floating_point() else "estimators read rows of numbers, not tokens"
    )
    if reason is not None:
        return TreePath(reason=reason.replace("estimators", "trees"))
    counted = queries.counted.cpu()
    if int(counted.sum()) < _LEAST_ROWS:
        raise ValueError(f"`queries` must hold at least {_LEAST_ROWS} that count, got {int(counted.sum())}: give more.")
    reason = why_constant(queries)
    if reason is not None:
        return TreePath(reason=reason)
    rows = queries.inputs.cpu()[counted].flatten(1).double().numpy()
    top = queries.logits.argmax(-1).cpu()[counted].numpy()
    common = float(np.bincount(top[len(top) // 2 :]).max() / (len(top) - len(top) // 2))
    if common >= fidelity:
        return TreePath(reason=f"the commonest decision alone has a share of {common:.3f}, the fidelity is {fidelity}")
    found = _smallest(rows, top, fidelity, seed)
    if queries.labels is None or math.isnan(found.value):
        return found
    true = queries.labels.cpu()[counted].numpy()
    return TreePath(
        value=found.value,
        leaves=found.leaves,
        agreement=found.agreement,
        twin=_smallest(rows, true, fidelity, seed).value,
        best_agreement=found.best_agreement,
    )


def _smallest(rows: Any, target: Any, fidelity: float, seed: int) -> TreePath:
    tree = optional("sklearn.tree", "Tree path length")
    half = len(rows) // 2
    leaves, best = 2, 0.0
    while leaves <= half:
        fitted = tree.DecisionTreeClassifier(max_leaf_nodes=leaves, max_depth=DEEPEST, random_state=seed)
        fitted.fit(rows[:half], target[:half])
        agreement = float((fitted.predict(rows[half:]) == target[half:]).mean())
        best = max(best, agreement)
        if agreement >= fidelity:
            # A path has one node more than questions.
            length = float(fitted.decision_path(rows[half:]).sum(1).mean()) - 1
            return TreePath(length, int(fitted.get_n_leaves()), agreement, best_agreement=best)
        if fitted.get_n_leaves() < leaves:
            break  # it has no more to ask
        leaves = leaves + 1 if leaves < 4 else _next(leaves)
    return TreePath(best_agreement=best, reason=f"no tree agrees more than {best:.3f}, the fidelity is {fidelity}")


def _next(leaves: int) -> int:
    """4, 6, 8, 12, 16, 24, ..."""
    power = 1 << (leaves.bit_length() - 1)
    return power + power // 2 if leaves == power else 2 * power
