"""Faithful circuits of models whose circuit is known."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import Circuit, FaithfulCircuit, faithful_circuit
from legibility.scores._asking import call
from legibility.scores.circuits._masked import Granularity, MaskedModel

GRANULARITIES: list[Granularity] = ["nodes", "edges"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TwoBlocks(nn.Module):
    """Two networks side by side, each on its own half of the input; the head reads the first."""

    def __init__(self, second: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one: Any = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
            self.two: Any = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
            self.head = nn.Linear(8, 3)
        with torch.no_grad():
            layer: Any
            for layer in (self.one[0], self.one[2], self.two[0], self.two[2], self.head):
                layer.weight.mul_(4.0)
            self.head.weight[:, 4:] *= second

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.one(x[:, :3]), self.two(x[:, 3:])], 1))
        return found


def test_of_two_blocks_exactly_the_one_that_is_read() -> None:
    model, inputs = TwoBlocks(), normal(512, 6)
    for granularity in GRANULARITIES:
        found = faithful_circuit(model, inputs, granularity=granularity)
        assert found.live > found.count_99 >= found.count_90 > 0
        assert found.learned_90 <= found.size_90 and found.learned_99 <= found.size_99
        for name, mask in found.masks.items():
            if name.startswith("two"):
                assert not bool(mask.any()), name
    # All of the first block is needed for everything it does; of the second, nothing ever.
    curve = MaskedModel(copy.deepcopy(model), inputs, call, None, "nodes", 512)
    block = {name: live.float() * (not name.startswith("two")) for name, live in curve.live.items()}
    assert curve.measured(block, torch.arange(512)) == pytest.approx(0.0, abs=1e-9)
    missing = {name: mask.clone() for name, mask in block.items()}
    missing["one.2"][:] = 0.0
    assert curve.measured(missing, torch.arange(512)) > 0.5


def test_by_hand() -> None:
    # One feature decides, at log odds 6 x - 6 x; the others add nothing that matters.
    model = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1e-4, 1e-4, 0.0, 0.0], [-3.0, 1e-4, 1e-4, 0.0, 0.0]]))
    found = faithful_circuit(model, normal(400, 5), granularity="nodes", learned_steps=0)
    assert (found.live, found.count_90, found.count_99) == (3, 1.0, 1.0)
    assert found.area == pytest.approx(1.0, abs=1e-6)
    edges = faithful_circuit(model, normal(400, 5), learned_steps=0)
    assert edges.live == 6 and edges.count_99 == 2.0
    assert edges.masks[""][:, 0].sum() == edges.count_90 and not bool(edges.masks[""][:, 1:].any())


def test_ablation_is_by_the_mean() -> None:
    """Against the forward pass written out, for a linear layer and a convolution."""
    inputs = normal(64, 4) + 2.0
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    masked = MaskedModel(model, inputs, call, None, "edges", 64)
    masks = {name: (normal(*live.shape, seed=1) > 0).float() for name, live in masked.live.items()}
    hidden = torch.tanh(model[0](inputs))
    first, second = model[0].weight, model[2].weight
    means = inputs.mean(0), hidden.mean(0)  # of the full model
    read = torch.tanh(inputs @ (first * masks["0"]).T + means[0] @ (first * (1 - masks["0"])).T + model[0].bias)
    expected = read @ (second * masks["2"]).T + means[1] @ (second * (1 - masks["2"])).T + model[2].bias
    torch.testing.assert_close(masked.answers(masks, torch.arange(64)).float(), expected.log_softmax(-1))
    assert "forward" not in vars(model[0])  # nothing is left on the model

    images = normal(32, 2, 6, 6) + 1.0
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(108, 2))
    masked = MaskedModel(conv, images, call, None, "nodes", 16)
    masks = masked.everything()
    masks["0"] = torch.tensor([0.0, 1.0])
    ablated = images.clone()
    ablated[:, 0] = images[:, 0].mean(0)
    torch.testing.assert_close(
        masked.answers(masks, torch.arange(32)).float(), conv(ablated).log_softmax(-1), rtol=1e-4, atol=1e-5
    )


def test_everything_and_nothing() -> None:
    model, inputs = TwoBlocks(second=1.0), normal(128, 6)
    masked = MaskedModel(model, inputs, call, None, "edges", 50)
    rows = torch.arange(128)
    assert masked.measured(masked.everything(), rows) == pytest.approx(0.0, abs=1e-9)
    answers = masked.answers(masked.nothing(), rows)
    assert float((answers - answers[0]).abs().max()) < 1e-6  # a constant
    log_p = model(inputs).double().log_softmax(-1)
    by_hand = (log_p.exp() * (log_p - answers)).sum(-1).mean() / math.log(2)
    assert masked.measured(masked.nothing(), rows) == pytest.approx(by_hand.item(), abs=1e-6)


def test_parts_that_cancel_are_unstable() -> None:
    """What isn't in the circuit is idle only as a whole: +100 h and -100 h of the same unit, copied."""

    def model(size: float) -> Any:
        net: Any = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
            net[1].weight.copy_(torch.tensor([[4.0, size, -size], [-4.0, -size, size]]))
        return net

    found = {size: faithful_circuit(model(size), normal(300, 2), learned_steps=0) for size in (1e-3, 20.0)}
    assert found[1e-3].stability > 0.9
    assert found[20.0].size_90 < 1 and found[20.0].stability < 0


@pytest.mark.parametrize("model", [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))])
def test_constant_and_untrained_models_have_no_circuit(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    found = faithful_circuit(model, normal(128, 4))
    assert math.isnan(found.size_90) and math.isnan(found.area) and math.isnan(found.stability)
    assert found.reason is not None and found.reason.startswith("the model is nearly constant: ablating all changes")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert faithful_circuit(model, normal(128, 4)).reason == (
        "no linear or convolutional layer was called whose input varies"
    )


def trained(seed: int = 0) -> tuple[Any, Tensor]:
    """A net that learnt which of three features is largest."""
    inputs = normal(400, 8, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(inputs), inputs[:, :3].argmax(1)))
            optimizer.step()
    return model, inputs


def sizes(found: Circuit) -> list[float]:
    return [found.size_90, found.size_99, found.learned_90, found.learned_99, found.area, found.stability]


def test_a_rescaled_twin_has_the_same_circuit() -> None:
    model, inputs = trained()
    twin = copy.deepcopy(model)
    scale = 2.0 ** torch.randint(-5, 6, (24,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        twin[0].weight.mul_(scale[:, None]), twin[0].bias.mul_(scale), twin[2].weight.div_(scale)
    for granularity in GRANULARITIES:
        one, other = (faithful_circuit(m, inputs, granularity=granularity) for m in (model, twin))
        assert sizes(one) == pytest.approx(sizes(other), abs=1e-6)
        assert one.count_90 == other.count_90 < one.live


def test_flattening_or_sharpening_the_answers_changes_nothing() -> None:
    model, inputs = trained()
    found = faithful_circuit(model, inputs)
    for by in (0.25, 4.0):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[4].weight.div_(by), other[4].bias.div_(by)
        flat = faithful_circuit(model, inputs, forward=lambda net, rows, by=by: net(rows) / by)  # type: ignore[misc]
        assert sizes(flat) == pytest.approx(sizes(found), abs=1e-6), by
        assert flat.divergence != pytest.approx(found.divergence, rel=0.05)
        # In the weights it changes a little, for balancing counts biases: the ranking by activation isn't quite the same.
        assert sizes(faithful_circuit(other, inputs)) == pytest.approx(sizes(found), abs=0.05), by


def test_gpt2s_transposed_layer_is_a_linear_layer() -> None:
    class Conv1D(nn.Module):  # as in the library transformers: weight (read, written)
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.nf, self.bias = layer.out_features, layer.bias
            self.weight = nn.Parameter(layer.weight.detach().T.contiguous())

        def forward(self, read: Tensor) -> Tensor:
            return read @ self.weight + self.bias

    model, inputs = trained()
    other = nn.Sequential(*[Conv1D(each) if isinstance(each, nn.Linear) else each for each in model])
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), model(inputs))
    found = faithful_circuit(other, inputs, learned_steps=0)
    assert found.live == sum(each.weight.numel() for each in model if isinstance(each, nn.Linear))
    assert 0 < found.size_90 < 0.7


def test_training_finds_what_is_relevant_and_the_untrained_net_is_no_better() -> None:
    model, inputs = trained()
    found = faithful_circuit(model, inputs, granularity="nodes")
    assert found.masks["0"][:3].tolist() == [1.0, 1.0, 1.0]  # the features that decide
    untrained = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in untrained[::2]:
            layer.reset_parameters()
        with torch.no_grad():
            untrained[4].weight.mul_(30.0)  # as loud as the trained one
    beside = faithful_circuit(untrained, inputs, granularity="nodes")
    assert beside.reason is None and beside.size_90 > found.size_90


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(7, 6), nn.Linear(6, 12), nn.Linear(12, 7)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.up(self.embed(ids)))) * 5}


def test_tokens_with_a_mask_and_an_output_of_its_own() -> None:
    torch.manual_seed(0)
    model = Reader()
    ids = torch.randint(0, 6, (80, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(80, 9, dtype=torch.bool)
    mask[:, 5:] = False
    padded = ids.clone()
    padded[:, 5:] = 6

    def ask(m: nn.Module, rows: Tensor) -> Tensor:
        found: Tensor = m(rows)["logits"]
        return found

    found = [faithful_circuit(model, rows, forward=ask, mask=mask) for rows in (ids, padded)]
    assert sizes(found[0]) == pytest.approx(sizes(found[1]), abs=1e-6)
    short = faithful_circuit(model, ids[:, :5], forward=ask)
    assert sizes(found[0]) == pytest.approx(sizes(short), abs=1e-6)


def test_a_transformers_fast_path_doesnt_pass_the_masks_by() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.layer(x)) * 4
            return found

    torch.manual_seed(0)
    model, inputs = Encoder().eval().requires_grad_(False), normal(80, 5, 6)
    masked = MaskedModel(model, inputs, call, None, "nodes", 80)
    assert set(masked.live) == {
        "layer.linear1",
        "layer.linear2",
        "head",
    }  # attention's projections are fused: they stay
    rows = torch.arange(80)
    whole = masked.answers(masked.everything(), rows)
    torch.testing.assert_close(whole, masked.log_p, rtol=0, atol=1e-5)
    for name in masked.live:
        without = masked.everything() | {name: torch.zeros_like(masked.everything()[name])}
        assert float((masked.answers(without, rows) - whole).abs().max()) > 0.05, name
    found = faithful_circuit(model, inputs, granularity="nodes", learned_steps=0)
    assert found.reason is None and 0 < found.size_90 <= 1


def test_the_model_and_the_random_stream_are_left_alone() -> None:
    model, inputs = trained()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    said = []
    with torch.inference_mode():
        faithful_circuit(model, inputs, learned_steps=20, progress=lambda name, share: said.append((name, share)))
    assert model.training and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [share for _, share in said] == sorted(share for _, share in said) and said[-1][1] <= 1.0


def test_metric_equals_the_function() -> None:
    model, inputs = trained()
    found = faithful_circuit(model, inputs, learned_steps=20)
    metric = FaithfulCircuit(model, learned_steps=20)
    for part in torch.split(inputs, 150):
        metric.update(part)
    values = metric.compute()
    assert values["size_90"].item() == found.size_90 and values["learned_99"].item() == found.learned_99
    assert all(value.dtype == torch.float64 for value in values.values())
    assert not metric.state_dict() and not list(metric.parameters())


def test_errors() -> None:
    model, inputs = nn.Linear(4, 3), normal(128, 4)
    with pytest.raises(ValueError, match="`inputs` must hold at least 64 rows, got 40"):
        faithful_circuit(model, inputs[:40])
    with pytest.raises(ValueError, match=r"`mask` must be bool \(128,\) or \(128, T\), got torch.float32 \(128,\)"):
        faithful_circuit(model, inputs, mask=torch.ones(128))
    with pytest.raises(ValueError, match="`mask` must leave positions in both halves"):
        faithful_circuit(model, inputs, mask=torch.arange(128) < 64)
    with pytest.raises(ValueError, match="`model` must answer with finite logits"):
        faithful_circuit(model, inputs / 0)
