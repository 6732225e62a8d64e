import math

import pytest
import torch
from torchmetrics.regression import KLDivergence

from legibility.scores import PatchThroughKL, patch_through_kl


def logits_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_by_hand() -> None:
    # p = 1/2, 1/2; patched 3/4, 1/4: 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    value = patch_through_kl(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    assert value.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-7)


def test_against_torchmetrics() -> None:
    logits, patched = logits_of(50, 7), logits_of(50, 7, seed=1)
    reference = KLDivergence(log_prob=True).set_dtype(torch.float64)
    expected = reference(logits.log_softmax(-1), patched.log_softmax(-1))
    torch.testing.assert_close(patch_through_kl(logits, patched), expected, rtol=1e-10, atol=0)


def test_nothing_changes_nothing_lost() -> None:
    logits = logits_of(4, 5, 6).float()
    assert patch_through_kl(logits, logits).item() == 0.0
    assert patch_through_kl(logits, logits + 100.0).item() < 1e-9  # only the distribution counts


def test_a_class_ruled_out_by_the_patch_costs_infinitely() -> None:
    assert patch_through_kl(torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]])).item() == math.inf


def test_a_patch_that_breaks_the_primary_is_seen() -> None:
    assert patch_through_kl(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [math.nan, 0.0]])).isnan()


def test_mask() -> None:
    logits, patched = logits_of(4, 5, 6), logits_of(4, 5, 6, seed=1)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = patch_through_kl(logits[mask], patched[mask])
    logits[~mask], patched[~mask] = math.nan, math.inf
    assert patch_through_kl(logits, patched, mask=mask).item() == expected.item()
    assert patch_through_kl(logits, patched, mask=torch.zeros_like(mask)).isnan()


@pytest.mark.parametrize("cuts", [[20], [1] * 20, [7, 13], [3, 0, 17]])
def test_metric_doesnt_depend_on_batches(cuts: list[int]) -> None:
    logits, patched = logits_of(20, 5, 6), logits_of(20, 5, 6, seed=1)
    mask = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    metric = PatchThroughKL()
    for parts in zip(*(torch.split(tensor, cuts) for tensor in (logits, patched, mask)), strict=True):
        metric.update(*parts)
    torch.testing.assert_close(metric.compute(), patch_through_kl(logits, patched, mask=mask), rtol=1e-12, atol=0)


def test_metric_keeps_no_graph_and_starts_empty() -> None:
    metric = PatchThroughKL()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute().isnan()
    logits = logits_of(3, 4).requires_grad_()
    metric.update(logits, logits_of(3, 4, seed=1))
    assert not metric.compute().requires_grad
    assert metric.higher_is_better is False


def test_errors() -> None:
    logits = logits_of(3, 4)
    with pytest.raises(TypeError, match="`patched_logits` must be a floating point tensor, got torch.int64"):
        patch_through_kl(logits, logits.long())
    with pytest.raises(ValueError, match=r"`patched_logits` must have the shape of `logits` \(3, 4\), got \(4,\)"):
        patch_through_kl(logits, logits[0])
    with pytest.raises(ValueError, match="`logits` must be finite"):
        patch_through_kl(logits.index_fill(0, torch.tensor([1]), math.inf), logits)
    with pytest.raises(ValueError, match=r"`mask` must be bool \(3,\).*got torch.float32"):
        patch_through_kl(logits, logits, mask=torch.ones(3))
