"""From a finished model and its queries to score entries: each with its control and with whether it was trained on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from legibility.lightning_plugins._queries import Call, patched
from legibility.lightning_plugins._recorder import Recorder
from legibility.losses import entropy
from legibility.scores import (
    FamilyImitation,
    Queries,
    held_out_imitation,
    held_out_twin,
    patch_through_kl,
    weight_sparsity,
)
from legibility.students import Student
from legibility.tradeoff import ScoreEntry, TaskEntry

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Subject:
    """A finished model as the scores see it.

    Attributes:
        primary: The module, in evaluation mode.
        recorder: Makes a recorder of it for calls without gradients.
        calls: The kept calls, in the order of the queries.
        temperature: What its logits are divided by (1 unless it is a temperature control).
        device: Where it is.
    """

    primary: nn.Module
    recorder: Callable[[], Recorder]
    calls: list[Call]
    temperature: float
    device: torch.device


def task_entry(queries: Queries, source: str) -> TaskEntry:
    """Cross-entropy (nats), accuracy and mean entropy (nats) of the queries' logits; None without labels."""
    counted = _counted(queries)
    logits = queries.logits[counted]
    entropies = float(entropy(logits).mean())
    if queries.labels is None:
        return TaskEntry("none", None, None, entropies, len(logits), source)
    labels = queries.labels[counted].long()
    return TaskEntry(
        name="cross-entropy",
        loss=float(nn.functional.cross_entropy(logits, labels)),
        accuracy=float((logits.argmax(-1) == labels).float().mean()),
        entropy=entropies,
        examples=len(logits),
        source=source,
    )


def _counted(queries: Queries) -> Tensor:
    """Which predictions count: those that are not masked and whose label is not an ignored one."""
    counted = torch.ones(queries.logits.shape[:-1], dtype=torch.bool) if queries.mask is None else queries.mask
    if counted.shape != queries.logits.shape[:-1]:
        counted = torch.ones(queries.logits.shape[:-1], dtype=torch.bool)
    return counted if queries.labels is None else counted & (queries.labels >= 0)


def imitation_scores(
    subject: Subject,
    queries: Queries,
    students: Sequence[Student],
    trained_with: Sequence[type[Student]],
    *,
    control: Mapping[str, FamilyImitation] | None,
    passes: float,
    seed: int,
    progress: Progress,
) -> tuple[list[ScoreEntry], dict[str, FamilyImitation]]:
    """The scores of held-out students, per family and as the mean over families.

    Args:
        subject: The model.
        queries: Its answers.
        students: The held-out families.
        trained_with: Architectures that took part in training: a score of such a family is marked.
        control: The same families on the random-init control, if it was measured.
        passes: Passes over what was seen, see :func:`legibility.scores.held_out_imitation`.
        seed: Of the students.
        progress: Called with what is going on and the share done.

    Returns:
        The entries, and the families' results.
    """
    fitted = held_out_imitation(queries, students, passes=passes, seed=seed, progress=progress)
    twins = twin_savings(queries, students, passes=passes, seed=seed, progress=progress)
    marks = {name: type(student) in trained_with for name, student in zip(fitted, students, strict=True)}
    entries: list[ScoreEntry] = []
    for name, result in fitted.items():
        other = None if control is None else control.get(name)
        values = _values_of(subject, queries, result, twins.get(name))
        controls = {} if other is None else _values_of(None, queries, other, None)
        for score, (value, unit, direction, reason) in values.items():
            beside, beside_name = controls.get(score, (None,))[0], "random-init"
            if score == "adjusted_saving":
                beside, beside_name = twins.get(name), "same student on the true labels"
            entries.append(
                ScoreEntry(
                    name=score,
                    value=value,
                    unit=unit,
                    direction=direction,
                    control=beside,
                    control_name=beside_name if beside is not None else None,
                    trained_on=marks[name],
                    family=name,
                    reason=reason,
                )
            )
    return [*_means(entries), *entries], fitted
