"""Models whose legibility is known beforehand, on scikit-learn's digits."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import (
    FamilyImitation,
    Queries,
    held_out_imitation,
    held_out_twin,
    kt_code_length,
    weight_sparsity,
)
from legibility.students import LinearStudent

Digits = tuple[Tensor, Tensor]
Fit = Callable[..., Tensor]


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def shuffled(labels: Tensor) -> Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


@pytest.fixture(scope="module")
def clean(digits: Digits, fit: Fit) -> Tensor:
    return fit(mlp(), *digits, epochs=60, learning_rate=1e-3)


@pytest.fixture(scope="module")
def twin(digits: Digits) -> dict[str, float]:
    inputs, labels = digits
    return held_out_twin(Queries(inputs, torch.zeros(1797, 10), labels), [LinearStudent()])


def by_linear_student(digits: Digits, logits: Tensor, twin: dict[str, float] | None = None) -> FamilyImitation:
    return held_out_imitation(Queries(digits[0], logits), [LinearStudent()], twin=twin)["linear"]


def test_true_labels_cost_about_700_bits(digits: Digits) -> None:
    # Reference: 700 +- 60 of 5969.5 bits uniform, by a logistic regression fitted anew from 1/64 of the data on.
    inputs, labels = digits
    queries = Queries(inputs, functional.one_hot(labels, 10).float())
    found = held_out_imitation(queries, [LinearStudent()], blocks=7)["linear"]
    assert found.code_length == pytest.approx(700, abs=60)
    assert found.null_code_length == pytest.approx(5969.5 + 40, abs=10)  # and what the code pays to learn the shares
    assert found.disagreement < 0.06


def test_clean_mlp(digits: Digits, clean: Tensor, twin: dict[str, float]) -> None:
    # Reference .838, by a logistic regression fitted anew for each block; see the next test for that.
    found = by_linear_student(digits, clean, twin)
    assert found.saving == pytest.approx(0.85, abs=0.02)
    assert found.relative_kl < 0.1
    assert found.adjusted_saving == pytest.approx(0.0, abs=0.03)  # it learnt the task and little else


def test_warm_start_codes_no_worse_than_refitting(digits: Digits, clean: Tensor) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, top = digits[0].numpy(), clean.argmax(-1)
    edges = [1797 >> shift for shift in (4, 3, 2, 1, 0)]
    bits = kt_code_length(torch.bincount(top[: edges[0]], minlength=10)).item()
    for start, stop in itertools.pairwise(edges):
        refitted = linear_model.LogisticRegression(max_iter=2000).fit(inputs[:start], top[:start].numpy())
        shares = torch.from_numpy(refitted.predict_proba(inputs[start:stop]))
        share = shares[torch.arange(stop - start), top[start:stop]]
        bits -= torch.log2((1 - 1e-3) * share + 1e-3 / 10).sum().item()
    saving = 1 - bits / kt_code_length(torch.bincount(top, minlength=10)).item()
    assert saving == pytest.approx(0.838, abs=0.015)
    assert by_linear_student(digits, clean).saving > saving


def test_permuted_labels_are_never_compressed(digits: Digits) -> None:
    # Reference 6043 to 6102 bits.
    found = by_linear_student(digits, functional.one_hot(shuffled(digits[1]), 10) * 5.0)
    assert found.code_length > found.null_code_length > 5969.5
    assert found.code_length < 6200  # nor does it lose much, for the code learns to distrust the student
    assert found.saving < 0
    assert found.disagreement > 0.85
    assert found.relative_kl > 0.95


def test_order_of_known_models(digits: Digits, fit: Fit) -> None:
    inputs, labels = digits[0][:512], digits[1][:512]
    noise = shuffled(labels)
    logits = {
        "clean": fit(mlp(), inputs, labels, epochs=60, learning_rate=1e-3),
        "untrained": mlp()(inputs).detach(),
        "memorised": fit(mlp(), inputs, noise, epochs=200, learning_rate=2e-3),
        "linear": fit(nn.Linear(64, 10), inputs, labels, epochs=60, learning_rate=1e-2),
    }
    assert (logits["memorised"].argmax(-1) == noise).float().mean() > 0.9, "it must have memorised"
    twin = held_out_twin(Queries(inputs, logits["clean"], labels), [LinearStudent()])
    found = {name: by_linear_student((inputs, labels), answers, twin) for name, answers in logits.items()}
    # An untrained net hardly depends on its input: it can't win what a constant model can't win.
    assert found["untrained"].reasons["saving"].startswith("the primary is constant: KL(p || marginal) is")
    # Nothing to learn; but labels are nearly uniform, which saves the 40 of 1741 bits that KT pays to find that out.
    assert found["memorised"].saving < 0.025
    assert min(found["clean"].saving, found["linear"].saving) > 0.5
    assert found["linear"].adjusted_saving > 0  # a linear primary is easier than the task
    assert found["linear"].kl < found["clean"].kl


def test_a_flattened_model_has_the_same_hard_label_scores(digits: Digits, clean: Tensor) -> None:
    sharp, flat = by_linear_student(digits, clean), by_linear_student(digits, clean / 4)
    for score in ("saving", "disagreement", "code_length", "null_code_length"):
        assert getattr(sharp, score) == getattr(flat, score)
    assert flat.kl < 0.8 * sharp.kl  # and this is why KL needs the temperature control


@pytest.mark.parametrize("kind", ["one class", "nearly equal", "no input", "uniform"])
def test_a_constant_model_scores_nan(digits: Digits, clean: Tensor, kind: str) -> None:
    logits = {
        "one class": clean + torch.eye(10)[3] * 1e3,
        "nearly equal": clean * 1e-3,  # top-1 vary, the distribution doesn't
        "no input": clean[:1].expand(1797, 10),
        "uniform": torch.zeros(1797, 10),
    }[kind]
    queries = Queries(digits[0], logits, taps={"layer": clean})
    found = held_out_imitation(queries, [LinearStudent()], twin={"linear": 0.8})["linear"]
    scores = ["kl", "relative_kl", "disagreement", "code_length", "null_code_length", "saving", "adjusted_saving"]
    scores += ["surplus"]
    assert all(math.isnan(getattr(found, score)) for score in scores)
    assert math.isnan(found.fvu["layer"])
    assert set(found.reasons) == {*scores, "fvu/layer"}
    assert all(reason.startswith("the primary is constant: ") for reason in found.reasons.values())


def test_constant_labels_have_no_twin(digits: Digits) -> None:
    queries = Queries(digits[0], torch.zeros(1797, 10), torch.full((1797,), 3))
    assert math.isnan(held_out_twin(queries, [LinearStudent()])["linear"])


def test_a_rescaled_network_scores_the_same(digits: Digits) -> None:
    inputs = digits[0]
    model, twin = mlp(), mlp()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.mul_({"0.weight": 8.0, "0.bias": 8.0, "2.weight": 1 / 8}.get(name, 1.0))
        one, other = (by_linear_student(digits, network(inputs) * 10) for network in (model, twin))
    for score in ("kl", "relative_kl", "disagreement", "saving"):
        assert getattr(one, score) == pytest.approx(getattr(other, score), abs=1e-6)
    before, after = (
        weight_sparsity((name, weight) for name, weight in network.named_parameters() if weight.ndim > 1)
        for network in (model, twin)
    )
    assert (before.zeros, before.dead_units) == (after.zeros, after.dead_units)
    assert before.gini == pytest.approx(after.gini, abs=1e-6)  # a whole layer's scale; single units would change it
