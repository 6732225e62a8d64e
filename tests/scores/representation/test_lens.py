import math

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import LensGap, lens_profile

UNITS, CLASSES = 12, 6


class Head(nn.Module):
    """A norm and an unembedding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unembed = nn.LayerNorm(UNITS), nn.Linear(UNITS, CLASSES, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.unembed(self.norm(hidden))
        return logits


@pytest.fixture
def head() -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Head()
    with torch.no_grad():
        head.unembed.weight.mul_(4)
    return head


@pytest.fixture
def last() -> Tensor:
    return torch.randn(600, UNITS, generator=torch.Generator().manual_seed(0)) * 2


def rotation() -> Tensor:
    turn: Tensor = torch.linalg.qr(torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(1)))[0]
    return turn


def test_identity_blocks_have_no_gap(head: Head, last: Tensor) -> None:
    found = lens_profile({"a": last, "b": last, "last": last}, head, head(last).detach())
    assert found.gap == pytest.approx(0, abs=1e-9)
    assert all(depth.logit_kl == pytest.approx(0, abs=1e-9) for depth in found.layers.values())


def test_rotated_layers_are_read_by_the_tuned_lens_only(head: Head, last: Tensor) -> None:
    turned = last @ rotation() * 3 + 1
    found = lens_profile({"turned": turned, "last": last}, head, head(last).detach())
    assert found.layers["turned"].logit_kl > found.information
    assert found.layers["turned"].tuned_kl < 1e-3 * found.information
    assert found.gap > 1


def test_half_computed_layers(head: Head, last: Tensor) -> None:
    noise = torch.randn(600, UNITS, generator=torch.Generator().manual_seed(2))
    found = lens_profile(
        {"nothing": noise * 2, "early": last + 4 * noise, "late": last + noise, "last": last}, head, head(last).detach()
    )
    nothing, early, late = found.layers.values()
    # A head can't read what isn't there; a tuned lens then says about as much as the marginal.
    assert nothing.tuned_kl == pytest.approx(found.information, rel=0.2)
    assert nothing.logit_kl > 1.5 * found.information
    assert nothing.tuned_kl > early.tuned_kl > late.tuned_kl > 0.05
    assert late.gap < 0.2 < early.gap < nothing.gap


def test_refinement_on_the_divergence_helps(head: Head, last: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # Least squares wants the means; what the head makes of means is too sure.
    noisy = last + 4 * torch.randn(600, UNITS, generator=torch.Generator().manual_seed(2))
    refined = lens_profile({"noisy": noisy, "last": last}, head, head(last).detach()).layers["noisy"].tuned_kl
    monkeypatch.setattr("legibility.scores.representation._lens._ROUNDS", 0)
    plain = lens_profile({"noisy": noisy, "last": last}, head, head(last).detach()).layers["noisy"].tuned_kl
    assert refined < 0.7 * plain


def test_the_head_is_left_alone(head: Head, last: Tensor) -> None:
    before = {name: value.clone() for name, value in head.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        lens_profile({"turned": last @ rotation(), "last": last}, head, head(last))
    assert all(parameter.grad is None for parameter in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_constant_and_an_untrained_model_have_no_gap(head: Head, last: Tensor) -> None:
    found = lens_profile({"a": last, "last": last}, lambda h: 0 * head(h), torch.zeros(600, CLASSES))
    assert math.isnan(found.gap) and found.reason.startswith("the model is as good as constant")
    flat = lens_profile({"a": last, "last": last}, lambda h: head(h) / 50, head(last).detach() / 50)
    assert math.isnan(flat.gap)


def test_temperature_hardly_matters(head: Head, last: Tensor) -> None:
    layers = {"noisy": last + torch.randn(600, UNITS, generator=torch.Generator().manual_seed(2)), "last": last}
    layers = {"turned": last @ rotation(), **layers}
    sharp = lens_profile(layers, head, head(last).detach())
    flat = lens_profile(layers, lambda h: head(h) / 4, head(last).detach() / 4)
    assert flat.information < sharp.information / 4
    assert flat.layers["turned"].gap > 0.5 and flat.layers["noisy"].gap < 0.3


def test_masked_positions_of_sequences(head: Head, last: Tensor) -> None:
    mask = torch.rand(150, 4, generator=torch.Generator().manual_seed(2)) < 0.8
    holed = last.view(150, 4, UNITS).masked_fill(~mask.unsqueeze(-1), math.nan)
    found = lens_profile({"turned": holed @ rotation(), "last": holed}, head, head(holed).detach(), mask=mask)
    assert found.gap > 1 and found.layers["turned"].tuned_kl < 1e-3


def test_metric_equals_function(head: Head, last: Tensor) -> None:
    layers = {"block.0": last @ rotation(), "block.1": last}
    logits = head(last).detach()
    metric = LensGap(head, layers=list(layers), limit=400)
    for rows in torch.split(torch.arange(600), 250):
        metric.update({name: layer[rows] for name, layer in layers.items()}, logits[rows])
    expected = lens_profile({name: layer[:400] for name, layer in layers.items()}, head, logits[:400])
    found = metric.compute()
    assert found["gap"].item() == expected.gap
    assert found["block.0/logit_kl"].item() == expected.layers["block.0"].logit_kl
    assert not list(metric.parameters()) and metric.dropped == 200
    with pytest.raises(ValueError, match=r"`layers` must be \['block.0', 'block.1'\] as announced"):
        metric.update({"block.0": last}, logits)


def test_errors(head: Head, last: Tensor) -> None:
    logits = head(last).detach()
    with pytest.raises(ValueError, match="`layers` must hold a layer and, last, what the head reads"):
        lens_profile({"last": last}, head, logits)
    with pytest.raises(ValueError, match="only a stream of one width has a lens"):
        lens_profile({"a": last[:, :4], "last": last}, head, logits)
    with pytest.raises(ValueError, match="`head` applied to the last of `layers`, 'b', must give `logits`"):
        lens_profile({"a": last, "b": last @ rotation()}, head, logits)
    with pytest.raises(ValueError, match="at least 32 unmasked examples, got 31"):
        lens_profile({"a": last[:31], "b": last[:31]}, head, logits[:31])
    with pytest.raises(ValueError, match=r"`layers\['a'\]` must be finite"):
        lens_profile({"a": last / 0, "b": last}, head, logits)
