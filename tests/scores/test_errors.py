"""Error predictability: primaries whose errors follow a known rule, or none."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from legibility.scores import (
    ErrorAgreement,
    ErrorPredictability,
    Estimator,
    ForestEstimator,
    NearestEstimator,
    Queries,
    error_agreement,
    error_predictability,
)
from legibility.students import NGramStudent


def decisions(count: int = 3000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)

    def noisy(of: Tensor, share: float) -> Tensor:
        other = torch.randint(0, 5, (count,), generator=generator)
        return torch.where(torch.rand(count, generator=generator) < share, other, of)

    primary = noisy(labels, 0.3)
    return primary, labels, noisy(primary, 0.4), noisy(labels, 0.2)


def test_by_hand() -> None:
    # Of 400 errors the student foretells 180 and the twin 100, 60 of them both: (.45 - .25) / .75.
    labels = torch.zeros(2000, dtype=torch.long)
    labels[1000:] = 1
    primary = labels.clone()
    primary[:400] = 2
    student, twin = labels.clone(), labels.clone()
    student[:180] = 2
    twin[120:220] = 2
    found = error_agreement(primary, labels, student, twin)
    assert found.value == pytest.approx(0.2 / 0.75, abs=1e-12)
    assert (found.errors, found.agreement, found.twin_agreement, found.accuracy) == (400, 0.45, 0.25, 0.8)
    # 1600 both right, 220 only the student, 180 both wrong: observed .89, expected .8 * .91 + .2 * .09.
    assert found.kappa == pytest.approx((0.89 - 0.746) / (1 - 0.746), abs=1e-12)
    low, high = found.interval
    assert low < found.value < high and high - low < 0.2


def test_kappa_is_cohens_of_being_right() -> None:
    """scikit-learn is the oracle, for neither thing of the name `error_consistency` can be.

    The authors' code (github.com/wichmann-lab/error_consistency) is Cohen's kappa of being right, and no package. What
    PyPI has under that name (0.3.1: Python 3.8 alone, numpy below 2) is by others and another quantity: of two sets of
    errors, what they share divided by their union.
    """
    metrics = pytest.importorskip("sklearn.metrics")
    primary, labels, student, twin = decisions()
    found = error_agreement(primary, labels, student, twin)
    expected = metrics.cohen_kappa_score((primary == labels).numpy(), (student == labels).numpy())
    assert found.kappa == pytest.approx(expected, abs=1e-12)


def test_intervals_are_those_of_resampled_examples() -> None:
    """scipy draws examples anew; here only their table is drawn."""
    stats = pytest.importorskip("scipy.stats")
    primary, labels, student, twin = (column.numpy() for column in decisions())
    found = error_agreement(*decisions())

    def kappa(right: Any, foretold: Any, axis: int) -> Any:
        observed, one, two = ((x).mean(axis) for x in (right == foretold, right, foretold))
        expected = one * two + (1 - one) * (1 - two)
        return (observed - expected) / (1 - expected)

    def xea(said: Any, twin_said: Any, axis: int) -> Any:
        return (said.mean(axis) - twin_said.mean(axis)) / (1 - twin_said.mean(axis))

    wrong = primary != labels
    samples = {
        kappa: (primary == labels, student == labels),
        xea: ((student == primary)[wrong], (twin == primary)[wrong]),
    }
    for (statistic, sample), own in zip(samples.items(), (found.kappa_interval, found.interval), strict=True):
        drawn = stats.bootstrap(sample, statistic, paired=True, n_resamples=2000, method="percentile", rng=1)
        spread = drawn.standard_error
        assert drawn.confidence_interval == pytest.approx(own, abs=0.3 * spread)  # 2000 draws leave .06 at each end
        assert own[1] - own[0] > 3 * spread


def test_intervals_cover_the_truth() -> None:
    """Of a hundred samples of 3000 from one process, about 95 intervals hold its value."""
    truth = error_agreement(*decisions(400_000, seed=123))
    covered = [
        (lo <= truth.value <= hi, klo <= truth.kappa <= khi)
        for found in (error_agreement(*decisions(seed=seed)) for seed in range(100))
        for (lo, hi), (klo, khi) in [(found.interval, found.kappa_interval)]
    ]
    for hits in zip(*covered, strict=True):
        assert 88 <= sum(hits) <= 100


def test_few_errors_give_an_interval_but_no_value() -> None:
    primary, labels, student, twin = (column[:300] for column in decisions())
    found = error_agreement(primary, labels, student, twin)
    assert math.isnan(found.value) and found.errors < 200
    assert found.reason == f"the primary made {found.errors} errors, 200 are needed: ask more, or harder, queries"
    assert found.interval[1] - found.interval[0] > 0.15


def test_models_that_havent_learnt_dont_win() -> None:
    _, labels, _, _ = decisions()
    constant = torch.full_like(labels, 2)
    found = error_agreement(constant, labels, constant, labels)  # perfectly foreseen
    assert math.isnan(found.value) and found.reason == "the primary is constant: it always says the same"
    untrained = (labels * 7 + torch.arange(3000)) % 5
    found = error_agreement(untrained, labels, untrained, labels)
    assert math.isnan(found.value)
    assert found.reason is not None and found.reason.endswith("it hasn't learnt the task")
    perfect = error_agreement(labels, labels, labels, labels)
    assert math.isnan(perfect.value) and perfect.errors == 0 and math.isnan(perfect.kappa)


def task(count: int = 1600, seed: int = 0) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()


def systematic(inputs: Tensor, labels: Tensor) -> Tensor:
    """Wrong exactly where the third feature is large."""
    return torch.where(inputs[:, 2] > 0.7, (labels + 1) % 4, labels)


FAMILIES: list[Estimator] = [ForestEstimator(30), NearestEstimator()]


def found_for(
    inputs: Tensor, labels: Tensor, top: Tensor, shifted: Queries | None = None
) -> dict[str, ErrorPredictability]:
    queries = Queries(inputs, functional.one_hot(top, 4).float() * 5, labels)
    return error_predictability(queries, FAMILIES, shifted=shifted)


def test_errors_with_a_rule_are_foreseen_and_random_ones_are_not() -> None:
    inputs, labels = task()
    ruled = found_for(inputs, labels, systematic(inputs, labels))
    drawn = torch.rand(1600, generator=torch.Generator().manual_seed(1)) < 0.25
    random = found_for(inputs, labels, torch.where(drawn, (labels + 1) % 4, labels))
    assert ruled["forest"].errors > 300 and random["forest"].errors > 300  # of both halves
    assert ruled["forest"].value > 0.5
    assert random["forest"].value < 0.1
    assert ruled["forest"].interval[0] > random["forest"].interval[1]
    assert ruled["forest"].kappa > random["forest"].kappa


def test_temperature_changes_nothing() -> None:
    inputs, labels = task(800)
    logits = functional.one_hot(systematic(inputs, labels), 4).float()
    found = [error_predictability(Queries(inputs, logits * s, labels), [NearestEstimator()]) for s in (1.0, 0.25)]
    assert found[0] == found[1]


def test_shifted_queries_are_foretold_by_all_others() -> None:
    inputs, labels = task(600)
    moved = torch.randn(1200, 5, generator=torch.Generator().manual_seed(5)) + torch.tensor([0, 0, 0.5, 0, 0])
    moved_labels = (moved[:, 0] > 0).long() + 2 * (moved[:, 1] > 0).long()
    shifted = Queries(moved, functional.one_hot(systematic(moved, moved_labels), 4).float(), moved_labels)
    found = found_for(inputs, labels, systematic(inputs, labels), shifted=shifted)["forest"]
    assert found.errors == int((moved[:, 2] > 0.7).sum())
    assert found.value > 0.4
    # A primary that errs by another rule there isn't foreseen.
    other_top = torch.where(moved[:, 2] < 0.3, (moved_labels + 1) % 4, moved_labels)
    other = Queries(moved, functional.one_hot(other_top, 4).float(), moved_labels)
    assert found_for(inputs, labels, systematic(inputs, labels), shifted=other)["forest"].value < 0.1


def test_tokens_and_masks() -> None:
    ids = torch.randint(0, 4, (200, 8), generator=torch.Generator().manual_seed(0))
    labels = (ids + 1) % 4
    top = torch.where(ids == 2, 0, labels)  # always wrong after a 2
    logits = functional.one_hot(top, 4).float() * 5
    mask = torch.ones(200, 8, dtype=torch.bool)
    mask[:, 6:] = False
    found = error_predictability(Queries(ids, logits, labels.where(mask, -100), mask), [NGramStudent()])
    assert found["ngram"].errors == int((ids[:, :6] == 2).sum())
    assert found["ngram"].value > 0.9
    estimated = error_predictability(Queries(ids, logits, labels.where(mask, -100), mask), FAMILIES)
    assert all(each.errors == found["ngram"].errors and each.value > 0.99 for each in estimated.values())
    with pytest.raises(ValueError, match="ForestEstimator can't be asked: estimators read tokens only where each has"):
        error_predictability(Queries(ids, logits[:, -1], labels[:, -1]), [ForestEstimator()])


def test_what_stands_where_nothing_is_to_be_read_doesnt_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, mask = torch.randn(300, 5, 3, generator=draw), torch.rand(300, 5, generator=draw) < 0.5
    mask[:, 0] = True
    logits = (inputs * mask.unsqueeze(-1)).sum(1)
    labels = (logits + torch.randn(300, 3, generator=draw)).argmax(-1)
    other = inputs.where(mask.unsqueeze(-1), torch.randn(300, 5, 3, generator=draw) * 50)
    one, two = (error_predictability(Queries(each, logits, labels, mask), FAMILIES) for each in (inputs, other))
    for name, found in one.items():
        assert found.kappa == two[name].kappa and found.agreement == two[name].agreement > 0.3


def test_metric_in_parts_equals_the_function() -> None:
    columns = decisions()
    mask = torch.rand(3000, generator=torch.Generator().manual_seed(3)) < 0.9
    whole = error_agreement(*columns, mask=mask)
    metric = ErrorAgreement(classes=5)
    for rows in torch.split(torch.arange(3000), 700):
        primary, labels, student, twin = (column[rows] for column in columns)
        metric.update(primary, labels, student, twin, mask[rows])
    values = metric.compute()
    assert values["xea"].item() == whole.value and values["kappa_high"].item() == whole.kappa_interval[1]
    assert values["errors"].item() == whole.errors
    with pytest.raises(ValueError, match=r"`labels` and `primary` must be in 0..1: `classes` is 2"):
        ErrorAgreement(classes=2).update(*columns)


def test_errors() -> None:
    primary, labels, student, twin = decisions()
    with pytest.raises(TypeError, match="`student` must be an integer tensor of class ids, got torch.float32"):
        error_agreement(primary, labels, student.float(), twin)
    with pytest.raises(ValueError, match=r"`twin` must have the shape of `labels` \(3000,\), got \(10,\)"):
        error_agreement(primary, labels, student, twin[:10])
    with pytest.raises(ValueError, match="at least one position that counts"):
        error_agreement(primary, labels, student, twin, mask=torch.zeros(3000, dtype=torch.bool))
    inputs, labels = task(100)
    without = Queries(inputs, torch.randn(100, 4))
    with pytest.raises(ValueError, match="`queries.labels` must be the true labels, got None"):
        error_predictability(without, FAMILIES)
    queries = Queries(inputs, torch.randn(100, 4), labels)
    with pytest.raises(ValueError, match="`families` must hold at least one family"):
        error_predictability(queries, [])
    other = Queries(inputs[:, :3], torch.randn(100, 4), labels)
    with pytest.raises(
        ValueError, match=r"`shifted.inputs` must have the shape of `queries.inputs` .* \(5,\), got \(3,\)"
    ):
        error_predictability(queries, FAMILIES, shifted=other)
