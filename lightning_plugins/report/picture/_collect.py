"""Collects everything that a model's page shows; a picture that can't be taken is a reason."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from legibility.lightning_plugins.report._queries import Subject
from legibility.lightning_plugins.report.choice._further import Seen
from legibility.lightning_plugins.report.picture._attention import attention_pictures
from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.lightning_plugins.report.picture._structure import (
    circuit_picture,
    graph_picture,
    lens_picture,
    weight_pictures,
)
from legibility.lightning_plugins.report.picture._students import student_pictures
from legibility.lightning_plugins.report.picture._units import units_pictures
from legibility.scores import Circuit, FamilyImitation, Queries
from legibility.tradeoff import ScoreEntry
from legibility.tradeoff.model_page import (
    AttentionPicture,
    CircuitPicture,
    ExamplePicture,
    ModelPicture,
    StudentPicture,
    UnitsPicture,
    WeightPicture,
)

_Found = TypeVar("_Found")


def collect(
    page: ModelPage,
    subject: Subject,
    seen: Seen,
    queries: Queries,
    families: dict[str, FamilyImitation],
    findings: Mapping[str, object],
    entries: list[ScoreEntry],
    classifies: bool,
) -> ModelPicture:
    """The pictures of one model.

    Args:
        page: How much is drawn, and how.
        subject: The model, in evaluation mode.
        seen: The same as scores see it.
        queries: Its answers.
        families: What held-out students made of it.
        findings: What scores found beside their numbers.
        entries: The scores: why one was not taken is why its picture is missing.
        classifies: Whether the answers are classes.

    Returns:
        The pictures; for those that could not be taken, the reasons.
    """
    missing: dict[str, str] = {}
    scores = {entry.name: entry for entry in entries if entry.family is None}

    def tried(name: str, take: Callable[[], _Found], nothing: _Found) -> _Found:
        try:
            return take()
        except Exception as error:  # noqa: BLE001 - somebody else's model: a picture must not cost the run
            missing[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return nothing

    no_students: tuple[list[StudentPicture], list[ExamplePicture]] = ([], [])
    weights: list[WeightPicture] = []
    if subject.sharded:
        missing["weights"] = "the weights are spread over ranks: their shares of zeros are among the scores"
    else:
        weights = tried("weights", lambda: weight_pictures(subject), weights)
    students, examples = tried("students", lambda: student_pictures(queries, families, page), no_students)
    if not students and "students" not in missing:
        missing["students"] = _reason(scores, "held_out_kl") or "no student answered"
    if seen.material is None:
        for name in ("units", "concepts", "lens", "circuit", "graph", "attention"):
            missing[name] = str(seen.why_not)
        return ModelPicture(
            type(subject.primary).__name__, "none", examples, students=students, weights=weights, missing=missing
        )
    circuits: list[CircuitPicture] = []
    no_attention: list[AttentionPicture] = []
    for name in ("circuit_nodes", "circuit_edges"):
        found = findings.get(name)
        if isinstance(found, Circuit) and found.reason is None:
            circuits.append(circuit_picture(found, scores.get(name)))
        else:
            missing["circuit"] = _reason(scores, name) or "not measured"
    units: list[UnitsPicture] = []
    units = tried("units", lambda: units_pictures(seen, page, classifies), units)
    if "units" in missing:
        missing["concepts"] = missing["units"]
    return ModelPicture(
        model=type(getattr(subject.primary, "_orig_mod", subject.primary)).__name__,
        layers_found=seen.views.layers.found,
        examples=examples,
        units=units,
        lens=tried("lens", lambda: lens_picture(seen, findings.get("lens_gap"), _reason(scores, "lens_gap")), None),
        circuits=circuits,
        graph=tried("graph", lambda: graph_picture(seen, scores), None),
        students=students,
        weights=weights,
        attention=tried("attention", lambda: attention_pictures(seen), no_attention),
        missing=missing,
    )


def _reason(scores: Mapping[str, ScoreEntry], name: str) -> str | None:
    entry = scores.get(name)
    return None if entry is None else entry.reason
