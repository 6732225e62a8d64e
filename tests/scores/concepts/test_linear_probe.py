import math

import pytest
import torch
from torch import Tensor

from legibility.scores.concepts._linear_probe import fit_probes, probe_savings, standardised, untrained_probes


@pytest.fixture
def inputs(digits: tuple[Tensor, Tensor]) -> Tensor:
    return standardised(digits[0][:600])


def test_l2_is_the_optimum_of_sklearn(inputs: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = digits[1][:600]
    probes = fit_probes(inputs, labels.unsqueeze(1), untrained_probes(64, [10], inputs.device), l2=1 / 600)
    reference = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(inputs.numpy(), labels.numpy())
    torch.testing.assert_close(probes.weight[0].T, torch.tensor(reference.coef_), rtol=0, atol=2e-3)


def test_l1_satisfies_the_optimality_conditions(inputs: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    labels = torch.stack([digits[1][:600] % 2, digits[1][:600] // 4], 1)
    l1 = torch.tensor([0.02, 0.01], dtype=torch.float64)
    probes = fit_probes(inputs, labels, untrained_probes(64, [2, 3], inputs.device), l1=l1, tolerance=1e-7)
    error = probes.logits(inputs).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    gradient = torch.einsum("nd,nck->cdk", inputs, error) / 600
    limit = l1.view(-1, 1, 1)
    live = probes.weight != 0
    assert 5 < int(live.sum()) < live.numel() / 2
    torch.testing.assert_close(gradient[live], (-limit * probes.weight.sign())[live], rtol=0, atol=1e-5)
    assert bool((gradient.abs() <= limit + 1e-5).all())
    torch.testing.assert_close(error.mean(0), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-5)


def test_concepts_do_not_disturb_each_other(inputs: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    labels = torch.stack([digits[1][:600], digits[1][:600] % 2], 1)
    both = fit_probes(inputs, labels, untrained_probes(64, [10, 2], inputs.device), l2=0.01)
    alone = fit_probes(inputs, labels[:, 1:], untrained_probes(64, [2], inputs.device), l2=0.01)
    assert bool((both.weight[1, :, 2:] == 0).all()) and bool(torch.isinf(both.bias[1, 2:]).all())
    torch.testing.assert_close(both.weight[1, :, :2], alone.weight[0], rtol=0, atol=1e-3)


def test_savings(digits: tuple[Tensor, Tensor]) -> None:
    h, labels = digits
    noise = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    columns = torch.stack([labels, noise, torch.zeros_like(labels)], 1)
    savings, accuracies = probe_savings(h, columns, [10, 10, 1])
    # Reference: 700 +- 60 bits, by logistic regression fitted anew, blocks from 1/64; here the first 1/16 is sent by KT.
    assert savings[0] == pytest.approx(0.86, abs=0.02) and accuracies[0] > 0.95
    assert -0.2 < savings[1] < 0 and accuracies[1] < 0.15
    assert math.isnan(savings[2]) and math.isnan(accuracies[2])


def test_constant_units_are_zero() -> None:
    h = torch.tensor([[1.0, 0.1], [3.0, 0.1]])
    assert standardised(h).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert standardised(torch.tensor([[5.0, 0.3]]), like=h).tolist() == [[3.0, 0.0]]
