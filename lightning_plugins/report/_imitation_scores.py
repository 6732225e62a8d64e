"""Scores by students that took no part in training, and what the model can still do with their predictions."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from legibility.lightning_plugins.report._queries import Call, Subject, patched
from legibility.scores import (
    FamilyImitation,
    FitSeconds,
    Queries,
    held_out_imitation,
    held_out_seconds,
    held_out_twin,
    patch_through_kl,
)
from legibility.students import Student, held_out_students, read_signature
from legibility.tradeoff import ScoreEntry

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Families:
    """The held-out students and how they are fitted.

    Attributes:
        students: Architectures, which are fitted whatever that takes; or "auto": those that suit the input and took no part
            in training, fitted if the budget allows.
        passes: Epochs over what was seen, see :func:`legibility.scores.held_out_imitation`.
        seed: Of their weights and shuffling.
    """

    students: Sequence[Student] | Literal["auto"]
    passes: int
    seed: int = 0

    def chosen(self, queries: Queries, trained_with: frozenset[type[Student]]) -> list[Student]:
        """The families for these queries."""
        if not isinstance(self.students, str):
            return list(self.students)
        signature = read_signature(queries.inputs, queries.logits)
        return [student for student in held_out_students(signature) if type(student) not in trained_with]

    def fit(
        self,
        queries: Queries,
        students: list[Student],
        progress: Progress,
        twin: Mapping[str, float] | None = None,
    ) -> dict[str, FamilyImitation]:
        """Fits every family from scratch."""
        return held_out_imitation(queries, students, twin=twin, passes=self.passes, seed=self.seed, progress=progress)

    def estimated(self, queries: Queries, students: list[Student]) -> FitSeconds:
        """What fitting them is estimated to take."""
        return held_out_seconds(queries, students, passes=self.passes)

    def fit_once(self, queries: Queries, students: list[Student], progress: Progress) -> dict[str, FamilyImitation]:
        """The same for answers that come again: an untrained model of one architecture answers alike in every arm."""
        key = self._key(students, queries, queries.logits, queries.mask, *queries.taps.values())

        def fitted() -> dict[str, FamilyImitation]:
            found = self.fit(queries, students, progress)
            empty = torch.zeros(0)
            return {n: replace(f, predicted_taps={}, by_position=empty, decided=empty) for n, f in found.items()}

        return _remembered(_UNTRAINED, key, fitted)

    def twin(self, queries: Queries, students: list[Student], progress: Progress) -> dict[str, float] | None:
        """What the same students save on the true labels; None without labels."""
        if queries.labels is None:
            return None
        key = self._key(students, queries, queries.labels, queries.mask)
        settings: dict[str, Any] = {"passes": self.passes, "seed": self.seed, "progress": progress}
        return _remembered(_TWINS, key, lambda: held_out_twin(queries, students, **settings))

    def _key(self, students: list[Student], queries: Queries, *tensors: Tensor | None) -> str:
        digest = hashlib.sha256(repr((students, self.passes, self.seed, queries.logits.shape)).encode())
        for tensor in (queries.inputs, *tensors):
            digest.update(b"none" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


# Twins depend on inputs, labels and settings, not on the model: one serves all arms that a process measures. What an
# untrained model is worth depends on its architecture and the inputs.
_TWINS: dict[str, dict[str, float]] = {}
_UNTRAINED: dict[str, dict[str, FamilyImitation]] = {}
_Found = TypeVar("_Found")


def _remembered(known: dict[str, _Found], key: str, find: Callable[[], _Found]) -> _Found:
    if key not in known:
        while len(known) >= 8:
            known.pop(next(iter(known)))
        known[key] = find()
    return known[key]


class _Value(NamedTuple):
    value: float
    unit: str
    direction: Literal["lower", "higher"] | None
    reason: str | None


class Imitation(NamedTuple):
    """What the held-out students made of the model: entries of the record, and each family."""

    entries: list[ScoreEntry]
    families: dict[str, FamilyImitation]


class _Control(NamedTuple):
    value: float
    name: str
    reason: str | None


def imitation_scores(
    subject: Subject,
    families: Families,
    students: list[Student],
    queries: Queries,
    used: list[Call],
    temperature: float,
    beside: Mapping[str, FamilyImitation] | None,
    progress: Progress,
) -> Imitation:
    """The scores of held-out students: the mean over families first (``family=None``), then each family's.

    Args:
        subject: The model, in evaluation mode.
        families: How they are fitted.
        students: The families.
        queries: The model's answers.
        used: The calls that the queries come from.
        temperature: What the queries' logits were divided by.
        beside: The same families on the random-init control, if it was measured.
        progress: Called with what is going on and the share done.

    Returns:
        The entries, and what each family made of it.
    """
    twin = families.twin(queries, students, lambda name, share: progress(f"{name} on the true labels", share))
    fitted = families.fit(queries, students, progress, twin)
    entries = []
    for (name, family), student in zip(fitted.items(), students, strict=True):
        values = _values(family) | _patch_through(subject, queries, used, temperature, family)
        other = _values(beside[name]) if beside is not None and name in beside else {}
        for score, value in values.items():
            control = _Control(other[score].value, "random-init", other[score].reason) if score in other else None
            if score == "adjusted_saving" and twin is not None:
                control = _Control(twin[name], "saving on the true labels", None)
            entries.append(_entry(score, value, control, type(student) in subject.trained_with, name))
    return Imitation([*_means(entries), *entries], fitted)


def missing_entry(name: str, unit: str, direction: Literal["lower", "higher"] | None, reason: str) -> ScoreEntry:
    """A score that could not be taken, and why."""
    return ScoreEntry(name, None, unit, direction, None, None, trained_on=False, reason=reason)


def left_out(reason: str, taps: Collection[str]) -> Imitation:
    """No student was fitted: why, for each of their scores."""
    scores = dict(_SCORES) | {f"fvu/{tap}": _FVU for tap in taps}
    scores |= {f"patch_through_kl/{tap}": _PATCHED for tap in taps}
    scores |= {"patch_through_kl": _PATCHED} if taps else {}
    return Imitation([missing_entry(name, unit, to, reason) for name, (unit, to) in scores.items()], {})


_SCORES: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "held_out_kl": ("nats", "lower"),
    "relative_kl": ("ratio", "lower"),
    "disagreement": ("share", "lower"),
    "code_length": ("bits", "lower"),
    "imitation_saving": ("share", "higher"),
    "adjusted_saving": ("share", "higher"),
}
_FVU: tuple[str, Literal["lower"]] = ("ratio", "lower")
_PATCHED: tuple[str, Literal["lower"]] = ("nats", "lower")


def _values(family: FamilyImitation) -> dict[str, _Value]:
    found = {
        "held_out_kl": (family.kl, "kl"),
        "relative_kl": (family.relative_kl, "relative_kl"),
        "disagreement": (family.disagreement, "disagreement"),
        "code_length": (family.code_length / family.positions, "code_length"),
        "imitation_saving": (family.saving, "saving"),
        "adjusted_saving": (family.adjusted_saving, "adjusted_saving"),
    }
    values = {name: _Value(value, *_SCORES[name], family.reasons.get(key)) for name, (value, key) in found.items()}
    for tap, fvu in family.fvu.items():
        values[f"fvu/{tap}"] = _Value(fvu, *_FVU, family.reasons.get(f"fvu/{tap}"))
    return values


def _patch_through(
    subject: Subject, queries: Queries, used: list[Call], temperature: float, family: FamilyImitation
) -> dict[str, _Value]:
    """For each tap: the student's prediction goes back into the model, and the rest of the model runs on it."""
    values = {}
    counted = queries.counted[family.first_scored :]
    real = queries.logits[family.first_scored :]
    for tap, predicted in family.predicted_taps.items():
        patched_logits = _run_patched(subject, queries, used, tap, predicted, family.first_scored) / temperature
        divergence = patch_through_kl(real, patched_logits, mask=counted)
        values[f"patch_through_kl/{tap}"] = _Value(float(divergence), *_PATCHED, None)
    if values:
        mean = sum(value.value for value in values.values()) / len(values)
        values["patch_through_kl"] = _Value(mean, *_PATCHED, None)
    return values


def _run_patched(
    subject: Subject, queries: Queries, used: list[Call], tap: str, predicted: Tensor, first: int
) -> Tensor:
    """The logits of the queries from ``first`` on, with a tap's activations replaced by a student's."""
    module = subject.recorder().module(tap)
    rows = []
    start = 0
    for call in used:
        end = start + call.examples
        if end > first:
            values = queries.taps[tap][start:end].clone()
            kept = max(first - start, 0)
            scored = predicted[max(start - first, 0) : end - first]
            values[kept:] = scored.reshape(values[kept:].shape).to(values)
            with patched(module, iter([values.to(subject.device)])):
                ((_, recording),) = subject.answers([call])
            rows.append(recording.output[kept:].cpu())
        start = end
    return torch.cat(rows)


def _entry(name: str, value: _Value, control: _Control | None, trained_on: bool, family: str | None) -> ScoreEntry:
    beside = None if control is None or not math.isfinite(control.value) else control.value
    finite = math.isfinite(value.value)
    return ScoreEntry(
        name=name,
        value=value.value if finite else None,
        unit=value.unit,
        direction=value.direction,
        control=beside,
        control_name=None if control is None or beside is None else control.name,
        trained_on=trained_on,
        family=family,
        reason=None if finite else value.reason or "not finite",
        control_reasons={} if control is None or beside is not None else {control.name: control.reason or "not finite"},
    )


def _means(entries: Sequence[ScoreEntry]) -> list[ScoreEntry]:
    """The mean over families of each score. A family without a value leaves the mean without one, with its reason."""
    means = []
    for name in dict.fromkeys(entry.name for entry in entries):
        of_name = [entry for entry in entries if entry.name == name]
        values = [entry.value for entry in of_name if entry.value is not None]
        controls = [entry.control for entry in of_name if entry.control is not None]
        absent = next((entry for entry in of_name if entry.value is None), None)
        means.append(
            replace(
                of_name[0],
                value=sum(values) / len(values) if absent is None else None,
                control=sum(controls) / len(controls) if len(controls) == len(of_name) else None,
                control_name=of_name[0].control_name if len(controls) == len(of_name) else None,
                trained_on=any(entry.trained_on for entry in of_name),
                family=None,
                reason=None if absent is None else f"{absent.family}: {absent.reason}",
            )
        )
    return means
