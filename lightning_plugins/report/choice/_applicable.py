"""Which of all scores apply to this model, each with what it would be trained on, or the reason why it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from legibility.lightning_plugins.report.choice._readings import Views, readings
from legibility.scores import (
    Control,
    Estimator,
    Material,
    Queries,
    Reading,
    Score,
    default_controls,
    families_for,
    further_scores,
    headline_scores,
    regression_queries,
    structure_scores,
)
from legibility.students import Student

NAMES = {"imitation_saving": "median_saving", "gini": "canonical_gini"}
"""In the record: their own names belong to the students' mean saving and to the Gini of the weights as they are."""

_SPARSE = ("canonical_gini", "compressed_size", "path_crosstalk")
_WIRED = ("wiring_cost", "relative_modularity", "path_crosstalk")
_NO_CLASSES = "the output is no distribution over classes"
_BY_STUDENTS = ("imitation_saving", "error_predictability", "patch_through", "student_cka")
_BY_ANSWERS = ("imitation_saving", "error_predictability", "error_predictability_shifted", "tree_path_length")
_BY_INPUTS = ("patch_through", "student_cka", "unit_readability")
Family = Student | Estimator
Take = Callable[[Material], Reading]


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
    views: Views,
    inputs: Tensor,
    no_layer: str | None,
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
        views: Its layers and head.
        inputs: What students and estimators read.
        no_layer: Why the material holds no layer; None if it does.
        classifies: Whether the answers are distributions; otherwise they are cut into bins where a score needs decisions.
        trained_with: Architectures that took part in the training: they don't measure.
        students: Architectures that the user named, or None.
        students_seconds: Seconds per 1000 positions that fitting the held-out students took: better than any estimate.
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
    networks = [family for family in families if isinstance(family, Student)]
    read = _AsRead(inputs, classifies)
    scores: list[tuple[Score, str | None]] = []
    for score in [*headline_scores(families), *structure_scores(), *further_scores(networks)]:
        own, reason = replace(score, name=NAMES.get(score.name, score.name)), None
        if score.name in _BY_ANSWERS:
            own = replace(own, take=read.answers_only(score.take))
        elif score.name in _BY_INPUTS:
            own = replace(own, take=read.with_inputs(score.take))
        elif score.name == "explanation_error":
            own, reason = replace(own, take=read.by_inputs(score.take)), views.not_plain
        if score.name in _BY_STUDENTS:
            own, reason = (
                replace(own, seconds=max(own.seconds, students_seconds)),
                no_families or no_student(score, networks),
            )
        if not classifies and ("classes" in score.needs or score.name == "compressed_size"):
            reason = _NO_CLASSES
        if "layer" in score.needs or "concepts" in score.needs:
            reason = reason or no_layer
        if "concepts" in score.needs and views.concepts is None:
            reason = "no concept labels were given: see `concepts=`"
        if score.name == "error_predictability_shifted":
            reason = "needs data from another distribution, with labels: call `error_predictability` by hand"
        scores.append((own, reason))
    scores += [(score, reason if classifies else _NO_CLASSES) for score, reason in readings(material, views)]
    return [
        Applicable(
            replace(score, take=_forgiven(score.take)),
            trained_on=(sparsified and score.name in _SPARSE) or (wired and score.name in _WIRED),
            reason=reason,
        )
        for score, reason in scores
    ]


def no_student(score: Score, networks: Sequence[Student]) -> str | None:
    """Why a score that asks students alone has nobody to ask."""
    if networks or score.name not in ("patch_through", "student_cka"):
        return None
    return "every student that reads such inputs took part in training"


def _decisions(queries: Queries, inputs: Tensor, classifies: bool) -> Queries:
    """The answers with the inputs that students read, and cut into decisions where they are values."""
    given = inputs.to(queries.inputs.device)
    mask = None if queries.mask is None else queries.counted
    if classifies:
        return Queries(given, queries.logits, queries.labels, mask)
    if queries.logits.ndim != 2:
        raise ValueError("values at each position of a sequence aren't cut into decisions")
    return regression_queries(given, queries.logits, mask=mask)


class _AsRead:
    """Gives scores the inputs that students read in place of the examples' numbers."""

    def __init__(self, inputs: Tensor, classifies: bool) -> None:
        self._inputs, self._classifies = inputs, classifies
        # Scores that share work know a material by its identity.
        self._known: dict[int, tuple[Material, Material]] = {}

    def answers_only(self, take: Take) -> Take:
        """For scores of answers: decisions in place of a regression's values."""
        return lambda material: take(
            replace(material, queries=_decisions(material.queries, self._inputs, self._classifies), model=None)
        )

    def with_inputs(self, take: Take) -> Take:
        """For scores of a layer that is recorded already."""
        return lambda material: take(self._given(material))

    def by_inputs(self, take: Take) -> Take:
        """For scores that put inputs of their own to the model."""
        return lambda material: take(replace(self._given(material), forward=None))

    def _given(self, material: Material) -> Material:
        if id(material) not in self._known:
            queries = replace(material.queries, inputs=self._inputs.to(material.queries.inputs.device))
            self._known[id(material)] = material, replace(material, queries=queries)
        return self._known[id(material)][1]


def _forgiven(take: Take) -> Take:
    def reading(material: Material) -> Reading:
        try:
            return take(material)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return reading


@dataclass(frozen=True, eq=False)
class _Ready(Control):
    """A control that was made before, or the reason why it could not be."""

    called: str
    made: Material | str

    @property
    def name(self) -> str:
        """As it is printed beside the score."""
        return self.called

    def apply(self, material: Material) -> Material | str:
        """What was made."""
        return self.made


def ready_controls(material: Material) -> list[Control]:
    """The controls of :func:`legibility.scores.default_controls`, made: what that takes is no score's time.

    One that can't be made has a reason, whatever the model's own code raises.
    """

    def made(control: Control) -> Material | str:
        try:
            return control.apply(material)
        except Exception as error:  # noqa: BLE001 - somebody else's model is copied and called
            return f"the control can't be made: {type(error).__name__}: {error}"

    return [_Ready(control.name, made(control)) for control in default_controls()]
