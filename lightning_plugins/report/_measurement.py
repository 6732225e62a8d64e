"""From a finished model and its queries to everything that a run record says about it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._compiled import uncompiled
from legibility.lightning_plugins.foundation._trees import whole
from legibility.lightning_plugins.foundation._untouched import untouched
from legibility.lightning_plugins.report._controls import RandomInitControl, TemperatureControl
from legibility.lightning_plugins.report._imitation_scores import (
    Families,
    Imitation,
    Progress,
    imitation_scores,
    left_out,
    missing_entry,
)
from legibility.lightning_plugins.report._queries import Call, Subject, ask
from legibility.lightning_plugins.report._whole_weights import every_weight, matrices
from legibility.lightning_plugins.report.choice._budget import Spent
from legibility.lightning_plugins.report.choice._further import Choice, Seen, further, look_at, page_seconds
from legibility.lightning_plugins.report.choice._subject_material import unhitched
from legibility.lightning_plugins.report.picture._collect import collect
from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.lightning_plugins.sparsity.weights._weights import penalisable_weights
from legibility.losses import entropy
from legibility.scores import (
    Queries,
    activation_rms,
    effective_rank,
    live_units,
    match_temperature,
    sparse_bytes,
    sparse_flops,
    weight_sparsity,
)
from legibility.scores.shards import reshard
from legibility.tradeoff import ScoreEntry, TaskEntry
from legibility.tradeoff.model_page import ModelPicture

_GUARDED_ROWS = 4096  # of a tap; enough for its spectrum, and an eigenvalue problem of thousands of units is not
_GUARDED_UNITS = 2048


@dataclass(frozen=True)
class Extent:
    """What is measured beside the held-out students.

    Attributes:
        patterns: Shell patterns over the scores' names.
        spent: The budget.
        agreed: Gives rank 0's number where all ranks measure together.
        aloud: Prints a line.
        page: How the page of the model is made; None: there is none.
        drawn: Draw it whatever that takes.
    """

    patterns: Sequence[str]
    spent: Spent
    agreed: Callable[[float], float]
    aloud: Callable[[str], None]
    page: ModelPage | None
    drawn: bool

    def spare(self, needed: float) -> float:
        """Seconds left after so many for students that nobody named; below 0 it is too much."""
        return self.agreed(self.spent.for_students() - needed)

    def why_undrawn(self, seen: Seen) -> str | None:
        """Why there is no page; None if there is one, or nobody wants one."""
        if self.page is None or self.drawn:
            return None
        left = self.agreed(self.spent.for_page())
        needed = 0.0 if math.isinf(left) else page_seconds(seen)
        if needed <= left:
            return None
        return (
            f"No page: drawing the model takes about {needed:.1g} s, {max(0.0, left):.1g} s of the budget are left. Give "
            "`page=ModelPage()` or `budget_seconds=`."
        )

    def tell(self, estimates: str) -> None:
        """Says what is going to be measured."""
        self.aloud(self.spent.told(estimates))


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        task: Loss, accuracy and entropy of the model on the queries.
        scores: Entries of the run record.
        guards: Quantities that betray a degenerate solution.
        notes: Remarks for the reader.
        temperature: What the logits were divided by, if they were.
        picture: What the page of the model is drawn from, if there is to be one.
    """

    task: TaskEntry
    scores: list[ScoreEntry] = field(default_factory=list)
    guards: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    temperature: float | None = None
    picture: ModelPicture | None = None


def measure_subject(
    subject: Subject,
    families: Families,
    *,
    control: TemperatureControl | RandomInitControl | None,
    random_init_control: bool,
    extent: Extent,
    progress: Progress,
) -> Measurement:
    """Measures a finished model; it is left as it was.

    Args:
        subject: The model.
        families: The held-out students and how they are fitted.
        control: Measure this control of the model instead of the model itself.
        random_init_control: Measure the held-out families on the untrained model too, as a control beside each score.
        extent: What is measured beside them, and how long that may take.
        progress: Called with what is going on and the share of it that is done.

    Returns:
        The measurement. A score that can't be taken has the value None and a reason.

    Raises:
        ValueError: No call of the model was seen, or its answers can't be queries (too few, not finite).
    """
    reshard(subject.outermost)  # what it gathered for its last call may be older than its shards
    try:
        if isinstance(control, RandomInitControl):
            with subject.untrained(control.seed) as uncovered:
                found = _measure(subject, families, None, False, extent, progress)
            if uncovered:
                found.notes.append(
                    f"random-init: {uncovered} parameter tensors have no reset_parameters; drawn normal."
                )
            return found
        return _measure(subject, families, control, random_init_control and control is None, extent, progress)
    finally:
        reshard(subject.outermost)


def classifies(queries: Queries) -> bool:
    """Whether the answers are distributions over classes: there are labels, or one answer for each token."""
    per_token = queries.logits.ndim == 3 and not queries.inputs.is_floating_point()
    return queries.logits.shape[-1] > 1 and (queries.labels is not None or per_token)


def task_entry(queries: Queries, source: str) -> TaskEntry:
    """Cross-entropy (nats), accuracy and mean entropy (nats) of the answers; the loss is None without labels."""
    logits = queries.logits[queries.counted].double()
    if not classifies(queries):
        return TaskEntry("none", None, None, None, len(logits), source)
    mean_entropy = float(entropy(logits).mean())
    if queries.labels is None:
        return TaskEntry("none", None, None, mean_entropy, len(logits), source)
    labels = queries.labels[queries.counted]
    return TaskEntry(
        name="cross-entropy",
        loss=float(nn.functional.cross_entropy(logits, labels)),
        accuracy=float((logits.argmax(-1) == labels).double().mean()),
        entropy=mean_entropy,
        examples=len(logits),
        source=source,
    )


def take_logged_loss(found: Measurement, metrics: Mapping[str, Tensor], name: str) -> None:
    """Puts a metric that the user logged in place of the task's loss; if it never was, the queries' stays, with a warning."""
    if name in metrics:
        found.task = replace(found.task, name=name, loss=float(metrics[name]), source=f"logged as {name}")
        return
    logged = ", ".join(metrics) or "none"
    note = f"`task_loss` = {name!r} was never logged, so the loss is that of the queries; logged metrics: {logged}"
    rank_zero_warn(f"InterpretabilityReport: {note}")
    found.notes.append(note)


def _measure(
    subject: Subject,
    families: Families,
    control: TemperatureControl | None,
    random_init_control: bool,
    extent: Extent,
    progress: Progress,
) -> Measurement:
    with untouched(subject.primary):
        begun = time.perf_counter()
        queries, used = ask(subject)
        asking = time.perf_counter() - begun
        temperature = 1.0
        notes = []
        if control is not None:
            if queries.labels is None:
                raise ValueError("a temperature control needs the task's labels in the batch, and none were found")
            temperature = match_temperature(queries.logits, queries.labels, control.loss, mask=queries.counted)
            queries = replace(queries, logits=queries.logits / temperature)
        if len(used) < len(subject.calls):
            left = len(subject.calls) - len(used)
            notes.append(f"{left} batches were left out: their shapes differ from the first one's.")
        if subject.split == "training":
            notes.append("No validation batch was seen: the queries are training examples.")
        found = Measurement(
            task=task_entry(queries, subject.split),
            guards=_guards(queries.taps),
            notes=notes,
            temperature=temperature if control is not None else None,
        )
        # The model and the labels, with fewer passes than the headline's four.
        imitated, seconds = _imitated(
            subject, families, queries, used, temperature, asking, random_init_control, extent, progress
        )
        per_fit = 1000 * seconds / int(queries.counted.sum()) / 2 * 4 / families.passes
        found.scores += imitated.entries + _sparsity_entries(subject)
        chosen = None if isinstance(families.students, str) else families.students
        with unhitched(subject.primary):
            seen = look_at(subject, queries, used, temperature)
            choice = Choice(extent.patterns, extent.spent.left, extent.spent.why_none, extent.tell, chosen, per_fit)
            others = further(seen, subject, choice, classifies=classifies(queries), progress=progress)
            found.scores += others.entries
            undrawn = extent.why_undrawn(seen)
            if undrawn is not None:
                extent.aloud(undrawn)
                found.notes.append(undrawn)
            if extent.page is not None and undrawn is None:
                found.picture = collect(
                    extent.page,
                    subject,
                    seen,
                    queries,
                    imitated.families,
                    others.findings,
                    found.scores,
                    classifies(queries),
                )
        return found


def _imitated(
    subject: Subject,
    families: Families,
    queries: Queries,
    used: list[Call],
    temperature: float,
    asking: float,
    random_init_control: bool,
    extent: Extent,
    progress: Progress,
) -> tuple[Imitation, float]:
    """What held-out students make of the model, if they are fitted; and the seconds for it and the labels."""
    if not classifies(queries):
        reason = "the output is no distribution over classes: the batch holds no class labels for it"
        return left_out(reason, queries.taps), 0.0
    students = families.chosen(queries, subject.trained_with)
    if not students:
        return left_out("every family that reads such inputs took part in training", queries.taps), 0.0
    if isinstance(families.students, str) and not math.isinf(extent.spare(0.0)):
        estimate = families.estimated(queries, students)
        needed = (1 + random_init_control) * estimate.imitation + (queries.labels is not None) * estimate.twin
        # The untrained model is asked all, and the model half of it again with each student's taps.
        needed += asking * (random_init_control + len(students) * len(queries.taps) / 2)
        left = extent.spare(needed)
        if left < 0:
            reason = (
                f"fitting students would take about {needed:.2g} s, {max(0.0, needed + left):.2g} s of the budget are "
                "left: name them (`held_out=[...]`), or give `budget_seconds=`"
            )
            extent.tell(f"No held-out students: {reason}.")
            return left_out(reason, queries.taps), sum(estimate)
    beside = None
    if random_init_control:
        with subject.untrained():
            answers, _ = ask(subject)
            beside = families.fit_once(answers, students, lambda n, share: progress(f"{n} on random init", share))
    begun = time.perf_counter()
    imitated = imitation_scores(subject, families, students, queries, used, temperature, beside, progress)
    return imitated, time.perf_counter() - begun


def _guards(taps: Mapping[str, Tensor]) -> dict[str, float | None]:
    guards: dict[str, float | None] = {}
    for name, tap in taps.items():
        rows = tap.flatten(0, 1) if tap.ndim == 3 else tap.flatten(1)
        rows = rows[:: max(1, len(rows) // _GUARDED_ROWS)]
        guards[f"rms/{name}"] = activation_rms(rows)
        guards[f"live_units/{name}"] = float(live_units(rows))
        guards[f"effective_rank/{name}"] = effective_rank(rows) if rows.shape[1] <= _GUARDED_UNITS else None
    return guards


def _sparsity_entries(subject: Subject) -> list[ScoreEntry]:
    with closing(matrices(subject)) as weights:
        found = weight_sparsity(weights)
    if found.weights == 0:
        return [missing_entry("exact_zero_share", "share", "higher", "the model has no weight matrices")]
    trained = subject.sparsified
    return [
        ScoreEntry("exact_zero_share", found.zeros, "share", "higher", None, None, trained_on=trained),
        ScoreEntry("active_weight_share", found.active, "share", "lower", None, None, trained_on=trained),
        missing_entry("gini", "ratio", "higher", "every weight is zero: there is no spread")
        if math.isnan(found.gini)
        else ScoreEntry("gini", found.gini, "ratio", "higher", None, None, trained_on=trained),
        ScoreEntry("dead_unit_share", found.dead_units / found.units, "share", None, None, None, trained_on=trained),
        *(_savings(subject) if found.zeros > 0 else []),
    ]


def _savings(subject: Subject) -> list[ScoreEntry]:
    """What the zeros would save where somebody makes use of them: bytes of all parameters, multiplications of a call."""
    with closing(every_weight(subject)) as weights:
        sizes = [(sparse_bytes([weight]), weight.numel() * weight.element_size()) for weight in weights]
    share = sum(sparse for sparse, _ in sizes) / sum(dense for _, dense in sizes)
    entries = [ScoreEntry("sparse_bytes_share", share, "share", "lower", None, None, trained_on=subject.sparsified)]
    if subject.ranks.flat or any(whole(p) is not p for p in subject.primary.parameters()):
        reason = "under a sharded strategy products read gathered copies, not the weights"
        return [*entries, missing_entry("sparse_flops_share", "share", "lower", reason)]
    call = subject.calls[0]
    args, kwargs = apply_to_collection((call.args, call.kwargs), Tensor, lambda t: t.to(subject.device))
    try:
        with uncompiled():
            every, needed = sparse_flops(
                lambda: subject.primary(*args, **kwargs), weights=penalisable_weights(subject.primary)
            )
    except (RuntimeError, NotImplementedError, TypeError) as error:  # somebody else's kernels under a dispatch mode
        reason = f"its operations can't be counted: {error}"
        return [*entries, missing_entry("sparse_flops_share", "share", "lower", reason)]
    if every == 0:
        return [*entries, missing_entry("sparse_flops_share", "share", "lower", "no matrix product or convolution")]
    left = ScoreEntry("sparse_flops_share", needed / every, "share", "lower", None, None, trained_on=subject.sparsified)
    return [*entries, left]
