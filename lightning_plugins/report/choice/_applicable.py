"""Which of all scores apply to this model, each with what it would be trained on, or the reason why it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from legibility.scores import (
    Control,
    Estimator,
    Material,
    Queries,
    Reading,
    Score,
    default_controls,
    families_for,
    headline_scores,
    regression_queries,
    structure_scores,
)
from legibility.students import Student

NAMES = {"imitation_saving": "median_saving", "gini": "canonical_gini"}
"""In the record: their own names belong to the students' mean saving and to the Gini of the weights as they are."""

_SPARSE = ("canonical_gini", "compressed_size")
_WIRED = ("wiring_cost", "relative_modularity")
_ON_CLASSES = ("lens_gap", "key_value_memories", "used_given_encoded")
_NO_CLASSES = "the output is no distribution over classes"
Family = Student | Estimator


@dataclass(frozen=True)
class Applicable:
    """One score for this model.

    Attributes:
        score: For `measure`.
        trained_on: Whether a term of the training was the score or a stand-in of it.
        reason: Why it does not apply; None if it does.
    """

    score: Score
    trained_on: bool
    reason: str | None = None


def applicable(
    material: Material,
    readings: Sequence[tuple[Score, str | None]],
    inputs: Tensor,
    *,
    classifies: bool,
    trained_with: frozenset[type[Student]],
    students: Sequence[Student] | None,
    students_seconds: float,
    sparsified: bool,
    wired: bool,
) -> list[Applicable]:
    """All scores there are, for a model that is asked by number.

    Args:
        material: The model.
        readings: Of the representation, with reasons.
        inputs: What students and estimators read.
        classifies: Whether the answers are distributions; otherwise they are cut into bins where a score needs decisions.
        trained_with: Architectures that took part in the training: they don't measure.
        students: Architectures that the user named, or None.
        students_seconds: Seconds per 1000 queries that fitting the held-out students took: better than any estimate.
        sparsified: Whether a sparsity term took part.
        wired: Whether a wiring term took part.

    Returns:
        The scores in the order of the record.
    """
    no_families = None
    families: list[Family] = []
    try:
        families = families_for(_decisions(material.queries, inputs, classifies))
    except ValueError as error:
        no_families = f"no family reads such inputs: {error}"
    if students is not None:
        families = [*(family for family in families if not isinstance(family, Student)), *students]
    families = [family for family in families if type(family) not in trained_with]
    scores: list[tuple[Score, str | None]] = []
    for score in [*headline_scores(families), *structure_scores()]:
        own, reason = replace(score, name=NAMES.get(score.name, score.name)), None
        if "model" not in score.needs:
            own = replace(own, take=_as_read(score.take, inputs, classifies))
            if score.name in ("imitation_saving", "error_predictability"):
                own, reason = replace(own, seconds=max(own.seconds, students_seconds)), no_families
        elif not score.weights_only and not classifies:
            reason = _NO_CLASSES
        if score.name == "error_predictability_shifted":
            reason = "needs data from another distribution, with labels: call `error_predictability` by hand"
        scores.append((own, reason))
    for score, reason in readings:
        scores.append((score, reason or (_NO_CLASSES if not classifies and score.name in _ON_CLASSES else None)))
    return [
        Applicable(
            replace(score, take=_forgiven(score.take)),
            trained_on=(sparsified and score.name in _SPARSE) or (wired and score.name in _WIRED),
            reason=reason,
        )
        for score, reason in scores
    ]


def _decisions(queries: Queries, inputs: Tensor, classifies: bool) -> Queries:
    """The answers with the inputs that students read, and cut into decisions where they are values."""
    given = inputs.to(queries.inputs.device)
    mask = None if queries.mask is None else queries.counted
    if classifies:
        return Queries(given, queries.logits, queries.labels, mask)
    if queries.logits.ndim != 2:
        raise ValueError("values at each position of a sequence aren't cut into decisions")
    return regression_queries(given, queries.logits, mask=mask)


def _as_read(take: Callable[[Material], Reading], inputs: Tensor, classifies: bool) -> Callable[[Material], Reading]:
    """A score that asks for the answers only, of what students read."""

    def reading(material: Material) -> Reading:
        return take(replace(material, queries=_decisions(material.queries, inputs, classifies), model=None))

    return reading


def _forgiven(take: Callable[[Material], Reading]) -> Callable[[Material], Reading]:
    def reading(material: Material) -> Reading:
        try:
            return take(material)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return reading


@dataclass(frozen=True)
class _Forgiven(Control):
    """A control that can't be made is a reason, whatever the model's own code raises."""

    control: Control

    @property
    def name(self) -> str:
        return self.control.name

    def apply(self, material: Material) -> Material | str:
        try:
            return self.control.apply(material)
        except Exception as error:  # noqa: BLE001 - somebody else's model is copied and called
            return f"the control can't be made: {type(error).__name__}: {error}"


def forgiving_controls() -> list[Control]:
    """The controls of :func:`legibility.scores.default_controls`; one that can't be made has a reason, not an error."""
    return [_Forgiven(control) for control in default_controls()]
