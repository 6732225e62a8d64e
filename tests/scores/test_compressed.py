"""Compressed size: known codes, known rounding errors, and models that mustn't win."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import CompressedSizeOfModel, compressed_size
from legibility.scores.weights._compressed import code_bits, rounded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "total", "bits"), [(0, 10, 4), (3, 10, 4), (10, 10, 1), (500, 20000, 8)])
def test_code_by_hand(count: int, total: int, bits: int) -> None:
    assert code_bits(count, total, bits) == pytest.approx(count * bits + math.log2(math.comb(total, count)), rel=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rounding_error_is_step_squared_over_twelve(bits: int) -> None:
    weight = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[:-1] + 5e-6
    found = rounded(weight, bits)
    assert len(set(found.tolist())) == 2**bits
    assert (found - weight).square().mean().item() == pytest.approx((2 / 2**bits) ** 2 / 12, rel=1e-2)
    assert bool((rounded(torch.zeros(3), bits) == 0).all())


def test_loss_of_rounding_a_linear_regression() -> None:
    """Whitened inputs: d weights rounded by `step` raise the mean squared error by `d step^2 / 12` per output."""
    inputs = torch.linalg.qr(normal(4000, 50).double())[0] * math.sqrt(4000)
    weight = torch.rand(1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    for bits in (4, 6, 8):
        step = 2 * weight.abs().max().item() / 2**bits
        rise = (inputs @ (rounded(weight, bits) - weight).T).square().mean().item()
        assert rise == pytest.approx(50 * step**2 / 12, rel=0.35)  # 50 draws of a uniform error


def sparse_teacher(kept: int = 6) -> tuple[Any, Tensor, Tensor]:
    """A linear model with few weights of one size that matter, the rest nearly nothing."""
    model = nn.Linear(40, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(normal(3, 40, seed=3) * 1e-5)
        model.weight.view(-1)[torch.randperm(120, generator=torch.Generator().manual_seed(0))[:kept]] = 4.0
    inputs = normal(400, 40)
    return model, inputs, model(inputs).argmax(-1)


def test_a_known_code_is_found() -> None:
    model, inputs, labels = sparse_teacher()
    found = compressed_size(model, inputs, labels, tolerance=0.02)
    assert found.weights == 120 and found.kept == 6 / 120
    # Of one size: at 2 bits a weight 4 is 3, at 3 bits 3.5; what it costs in loss decides.
    assert found.bits == pytest.approx(code_bits(6, 120, int(found.bits_per_weight)), abs=1e-9)
    assert found.bits_per_weight <= 6 and found.share == found.bits / (32 * 120)
    assert found.rise <= found.bound <= 0.02


def test_dead_weight_and_dead_units_cost_only_their_place() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        slim: Any = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        wide: Any = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 3))
    with torch.no_grad():
        slim[0].weight.mul_(6.0)
        wide[2].weight[:, 6:] = 0.0  # nobody reads these
        wide[2].weight[:, :6], wide[0].weight[:6], wide[0].bias[:6] = slim[2].weight, slim[0].weight, slim[0].bias
        wide[2].bias.copy_(slim[2].bias)
    inputs = normal(300, 8)
    labels = slim(inputs).argmax(-1)
    one, other = (compressed_size(m, inputs, labels, tolerance=0.05) for m in (slim, wide))
    assert one.weights == other.weights == 8 * 6 + 6 * 3
    assert one.bits == pytest.approx(other.bits, rel=1e-6)
    assert other.share < one.share  # of what there was


def trained() -> tuple[Any, Tensor, Tensor]:
    inputs = normal(400, 8)
    labels = inputs[:, :3].argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(inputs), labels))
            optimizer.step()
    return model, inputs, labels


def test_a_rescaled_twin_has_the_same_size_and_without_balancing_it_hadnt() -> None:
    model, inputs, labels = trained()
    twin = copy.deepcopy(model)
    scale = 2.0 ** torch.randint(-5, 6, (24,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        twin[0].weight.mul_(scale[:, None]), twin[0].bias.mul_(scale), twin[2].weight.div_(scale)
    one, other = (compressed_size(m, inputs, labels) for m in (model, twin))
    assert one.bits == pytest.approx(other.bits, rel=1e-6) and one.bound == pytest.approx(other.bound, abs=1e-6)
    raw, broken = copy.deepcopy(model), copy.deepcopy(twin)
    with torch.no_grad():
        for each in (raw, broken):
            for layer in (each[0], each[2], each[4]):
                layer.weight.copy_(rounded(layer.weight, 4))
        rise = [functional.cross_entropy(m(inputs), labels).item() for m in (raw, broken)]
    assert rise[1] > rise[0] + 0.05


def test_flattening_the_answers_changes_nothing() -> None:
    model, inputs, labels = trained()
    for factor in (4.0, 0.25):
        flat = copy.deepcopy(model)
        with torch.no_grad():
            flat[4].weight.div_(factor), flat[4].bias.div_(factor)
        one, other = (compressed_size(m, inputs, labels) for m in (model, flat))
        asked = compressed_size(model, inputs, labels, forward=lambda m, x: m(x) / 4.0)
        assert asked.bits == pytest.approx(one.bits, rel=1e-6)
        # With the factor inside the last layer, balancing shares it out among the layers, but for the biases.
        assert other.bits == pytest.approx(one.bits, rel=0.1)


def test_more_tolerance_takes_fewer_bits() -> None:
    model, inputs, labels = trained()
    sizes = [compressed_size(model, inputs, labels, tolerance=t).bits for t in (0.003, 0.03, 0.3)]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.8 * sizes[0]


def test_models_that_do_nothing_have_no_size() -> None:
    inputs = normal(200, 8)
    labels = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(0))
    untrained: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    constant = copy.deepcopy(untrained)
    with torch.no_grad():
        constant[2].weight.zero_()
    for model in (untrained, constant):
        found = compressed_size(model, inputs, labels)
        assert math.isnan(found.bits) and math.isnan(found.share)
    assert found.reason == "without any weight the loss is about as good: the model is constant or hasn't learnt"
    assert compressed_size(nn.Flatten(), normal(64, 3), labels[:64]).reason == "the model has no weight matrices"


def test_tokens_masks_and_regressions() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 8), nn.Linear(8, 4)

        def forward(self, ids: Tensor) -> Tensor:
            found: Tensor = self.head(self.embed(ids)) * 4
            return found

    torch.manual_seed(0)
    model = Tagger()
    ids = torch.randint(0, 5, (60, 7), generator=torch.Generator().manual_seed(0))
    labels = model(ids).argmax(-1)
    mask = torch.ones(60, 7, dtype=torch.bool)
    mask[:, 4:] = False
    whole = compressed_size(model, ids[:, :4], labels[:, :4], tolerance=0.1)
    padded = compressed_size(model, ids, labels.where(mask, -100), tolerance=0.1, mask=mask)
    assert whole.bits == padded.bits and whole.weights == 6 * 8 + 8 * 4

    regressor = nn.Linear(8, 2)
    inputs = normal(100, 8)
    found = compressed_size(regressor, inputs, regressor(inputs).detach(), tolerance=0.01)
    assert 0 < found.share < 0.5
    loose = compressed_size(regressor, inputs, regressor(inputs).detach(), tolerance=0.1)
    assert loose.bits < found.bits


def test_metric_equals_the_function_and_the_model_is_left_alone() -> None:
    model, inputs, labels = trained()
    before = copy.deepcopy(model.state_dict())
    found = compressed_size(model, inputs, labels)
    metric = CompressedSizeOfModel(model)
    for rows in torch.split(torch.arange(400), 150):
        metric.update(inputs[rows], labels[rows])
    values = metric.compute()
    assert values["bits"].item() == found.bits and values["bound"].item() == found.bound
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_errors() -> None:
    model, inputs, labels = sparse_teacher()
    with pytest.raises(ValueError, match="`tolerance` must be above 0, got 0"):
        compressed_size(model, inputs, labels, tolerance=0)
    with pytest.raises(ValueError, match="`inputs` must hold at least 32 rows, got 10"):
        compressed_size(model, inputs[:10], labels[:10])
    with pytest.raises(ValueError, match="`labels` must hold as many rows as `inputs`, 400, got 3"):
        compressed_size(model, inputs, labels[:3])
    with pytest.raises(
        ValueError, match=r"`labels` and `mask` must have the shape of the logits without classes \(256,\)"
    ):
        compressed_size(model, inputs, labels.unsqueeze(1))
    with pytest.raises(ValueError, match="`labels` must be shaped like the output"):
        compressed_size(model, inputs, inputs)
    with pytest.raises(ValueError, match="`model` must have a finite loss"):
        compressed_size(model, inputs / 0, labels)
