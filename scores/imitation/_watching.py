"""Who watched the primary, and who learnt the task: both asked about inputs that they didn't see."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from legibility.scores.imitation._errors import ErrorPredictability, error_agreement
from legibility.scores.imitation._estimators import Estimator
from legibility.scores.imitation._families import Family, Imitator, Training, family_names, isolated
from legibility.scores.imitation._processes import in_processes, networks_at_a_time
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._refitted import fitted_logits
from legibility.scores.imitation._rows import counted_rows, why_unread
from legibility.students import Prediction, read_signature


def error_predictability(
    queries: Queries,
    families: Sequence[Family],
    *,
    shifted: Queries | None = None,
    passes: int = 8,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    width: int = 32,
    seed: int = 0,
    jobs: int | None = None,
) -> dict[str, ErrorPredictability]:
    """H2: how well families that watched the primary foresee its errors, better than families that know the task.

    Each family is fitted twice with equal settings: as student on the primary's decisions, as twin on the true labels.
    Without `shifted`, the queries are cut in two halves; each is foretold by what was learnt from the other, so that
    every error counts. With `shifted`, all queries are learnt from and the shifted ones are foretold.

    Card:
        Range and direction: (-inf, 1], higher = errors are foreseen; see `error_agreement`.
        Cost: four fits per family (two with `shifted`). Controls: the twin (inside), the untrained model.
        Gamed by: simple errors, as there. Not trained on, unless the families took part in training.

    Args:
        queries: with labels.
        families: students and estimators; held out, to say anything about others than those trained with.
        shifted: queries from another distribution, with labels and the same classes.
        passes: epochs, of networks.
        batch_size: queries per optimizer step.
        learning_rate: Adam's at the start; it falls linearly to 0.
        width: hidden size of the students that don't fix their own.
        seed: of initialisation, shuffling and bootstrap.
        jobs: families fitted at a time, in processes on the CPU; the numbers are those of one after the other (None).

    Returns:
        by family.

    Raises:
        ValueError: without labels, without families, for other classes or shapes in `shifted`, and as
            `held_out_imitation`.

    Example:
        >>> import torch
        >>> from legibility.scores import Queries, error_predictability
        >>> from legibility.students import LinearStudent
        >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> labels = (x[:, 0] > 0).long()
        >>> says = (x[:, :1] + x[:, 1:2]) @ torch.tensor([[-3.0, 3.0]])  # looks at a feature that it shouldn't
        >>> found = error_predictability(Queries(x, says, labels), [LinearStudent()])["linear"]
        >>> found.value > 0.5, found.errors > 200
        (True, True)

    Source: H2 of this project's scores.
    """
    if not families:
        raise ValueError("`families` must hold at least one family, got none: see `held_out_students`.")
    for name, given in (("queries", queries), ("shifted", shifted)):
        if given is not None and given.labels is None:
            raise ValueError(f"`{name}.labels` must be the true labels, got None: errors are against them.")
    training = Training(passes, batch_size, learning_rate, width, seed)
    tests = _halves(queries) if shifted is None else [_joined(queries, shifted)]
    fits = [(test, seen, family, training) for family in families for test, seen in tests]
    told = in_processes(_asked, fits, networks_at_a_time(jobs, queries.inputs.device))
    found = {}
    for name in family_names(families):
        parts = [next(told) for _ in tests]
        columns = [torch.cat([part[column] for part in parts]) for column in range(4)]
        found[name] = error_agreement(*columns, seed=seed)
    return found


def _halves(queries: Queries) -> list[tuple[Queries, int]]:
    """The queries with either half first, and how many come first."""
    queries = queries.together()
    half = len(queries) // 2
    order = torch.arange(len(queries), device=queries.inputs.device)
    return [(_taken(queries, order), half), (_taken(queries, order.roll(-half)), len(queries) - half)]


def _taken(queries: Queries, order: Tensor) -> Queries:
    assert queries.labels is not None
    mask = None if queries.mask is None else queries.mask[order]
    return Queries(queries.inputs[order], queries.logits[order], queries.labels[order], mask)


def _joined(queries: Queries, shifted: Queries) -> tuple[Queries, int]:
    queries, shifted = queries.together(), shifted.together()
    for name in ("inputs", "logits"):
        one, other = getattr(queries, name), getattr(shifted, name)
        if one.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"`shifted.{name}` must have the shape of `queries.{name}` beyond the first dimension, "
                f"{tuple(one.shape[1:])}, got {tuple(other.shape[1:])}."
            )
    assert queries.labels is not None and shifted.labels is not None
    mask = None
    if queries.mask is not None or shifted.mask is not None:
        masks = [q.counted if q.mask is None else q.mask for q in (queries, shifted)]
        mask = torch.cat([m.to(queries.inputs.device) for m in masks])
    device = queries.inputs.device
    joined = Queries(
        torch.cat([queries.inputs, shifted.inputs.to(device)]),
        torch.cat([queries.logits, shifted.logits.to(device)]),
        torch.cat([queries.labels, shifted.labels.to(device)]),
        mask,
    )
    return joined, len(queries)


def _asked(queries: Queries, seen: int, family: Family, training: Training) -> list[Tensor]:
    """Decisions of the primary, labels, the student's and the twin's, on the positions that count after `seen`."""
    assert queries.labels is not None
    keep = queries.counted[seen:]
    top = queries.logits.argmax(-1)
    true = torch.where(queries.counted, queries.labels, 0)
    answers = [_foretold(queries, target, seen, family, training).cpu() for target in (top, true)]
    return [top[seen:][keep].cpu(), true[seen:][keep].cpu(), *answers]


def _foretold(queries: Queries, target: Tensor, seen: int, family: Family, training: Training) -> Tensor:
    """Decisions on the positions that count after `seen`, by a family that learnt `target` before."""
    counted = queries.counted
    if isinstance(family, Estimator):
        unread = why_unread(queries)
        if unread is not None:
            raise ValueError(f"`families`: {type(family).__name__} can't be asked: {unread}.")
        rows, learnt = counted_rows(queries, like=seen), target[:seen][counted[:seen]].cpu()
        classes, known = queries.logits.shape[-1], len(learnt)
        return fitted_logits(family, rows[:known], learnt, rows[known:], classes, training.seed).argmax(-1)

    def loss(prediction: Prediction, rows: Tensor) -> Tensor:
        keep = counted[rows]
        total = functional.cross_entropy(prediction.output[keep], target[rows][keep], reduction="sum")
        return total / keep.sum().clamp(min=1)

    with isolated(queries.inputs.device):
        signature = read_signature(queries.inputs, queries.logits)
        imitator = Imitator(family, signature, queries, training, lambda: None)
        imitator.learn(seen, loss, passes=training.passes)
        parts = [p.output[counted[rows]].argmax(-1) for rows, p in imitator.answers(seen, len(queries))]
    return torch.cat(parts)
