"""Sparsity penalties and the root mean square: hand values, norms of PyTorch, gradients, empty and complex weights."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from legibility.losses import group_l1_penalty, l1_penalty, log_penalty, root_mean_square

Penalty = Callable[[Tensor], Tensor]
PENALTIES: dict[str, Penalty] = {
    "l1": l1_penalty,
    "log": partial(log_penalty, epsilon=0.5),
    "group": partial(group_l1_penalty, dim=1),
    "rms": root_mean_square,
}
ALL = pytest.mark.parametrize("penalty", list(PENALTIES.values()), ids=list(PENALTIES))


def weights(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


class TestHandValues:
    def test_l1(self) -> None:
        assert l1_penalty(torch.tensor([[1.0, -2.0], [0.0, 3.5]])).item() == 6.5

    def test_log(self) -> None:
        # 2 log(1 + 2/2) + 2 log(1 + 6/2) + 0 = 2 log 2 + 2 log 4 = 6 log 2
        value = log_penalty(torch.tensor([2.0, -6.0, 0.0]), epsilon=2.0)
        assert value.item() == pytest.approx(6 * math.log(2), rel=1e-6)

    def test_group(self) -> None:
        w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
        # rows: sqrt(2) (5 + 0 + 2); columns: sqrt(3) (3 + sqrt(16 + 4)); both dimensions: sqrt(6) sqrt(29)
        assert group_l1_penalty(w, dim=1).item() == pytest.approx(math.sqrt(2) * 7)
        assert group_l1_penalty(w, dim=0).item() == pytest.approx(math.sqrt(3) * (3 + math.sqrt(20)))
        assert group_l1_penalty(w, dim=(0, 1)).item() == pytest.approx(math.sqrt(6 * 29))
        assert group_l1_penalty(w, dim=-1).item() == group_l1_penalty(w, dim=1).item()

    def test_rms(self) -> None:
        assert root_mean_square(torch.tensor([[1.0, -7.0]])).item() == 5.0  # sqrt(50 / 2)
        assert root_mean_square(torch.tensor(-3.0)).item() == 3.0

    def test_complex(self) -> None:
        w = torch.tensor([[3 + 4j, 0j]])  # moduli 5, 0
        assert l1_penalty(w).item() == 5.0
        assert log_penalty(w, epsilon=5.0).item() == pytest.approx(5 * math.log(2))
        assert group_l1_penalty(w, dim=1).item() == pytest.approx(5 * math.sqrt(2))
        assert root_mean_square(w).item() == pytest.approx(5 / math.sqrt(2))


def test_equal_pytorch_norms() -> None:
    w = weights(5, 4, 3)
    torch.testing.assert_close(l1_penalty(w), torch.linalg.vector_norm(w, 1))
    filters = sum(torch.linalg.vector_norm(f) for f in w) * math.sqrt(12)
    torch.testing.assert_close(group_l1_penalty(w, dim=(1, 2)), filters)
    torch.testing.assert_close(root_mean_square(w), w.square().mean().sqrt())


def test_groups_of_one_weight_are_l1() -> None:
    w = weights(7, 1)
    torch.testing.assert_close(group_l1_penalty(w, dim=1), l1_penalty(w))


def test_log_lies_below_l1_and_tends_to_it() -> None:
    w = weights(50)
    values = [log_penalty(w, epsilon=e).item() for e in (1e-3, 0.1, 1.0, 1e6)]
    assert values == sorted(values) and values[-1] < l1_penalty(w).item()
    assert values[-1] == pytest.approx(l1_penalty(w).item(), rel=1e-5)


def test_log_slope() -> None:
    # epsilon / (|w| + epsilon): 1/2 at |w| = epsilon, 1 just above zero
    w = torch.tensor([0.5, -0.5, 1e-12], dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(log_penalty(w, epsilon=0.5))
    torch.testing.assert_close(w.grad, torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64))


@ALL
def test_gradients(penalty: Penalty) -> None:
    assert torch.autograd.gradcheck(penalty, weights(3, 4).requires_grad_())
    assert torch.autograd.gradcheck(penalty, weights(3, 4, dtype=torch.complex128).requires_grad_())


@ALL
def test_gradient_at_zero_is_zero(penalty: Penalty) -> None:
    w = torch.zeros(3, 4, requires_grad=True)
    value = penalty(w)
    assert value.item() == 0.0
    torch.autograd.backward(value)
    assert w.grad is not None and (w.grad == 0).all()


@ALL
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_weights(penalty: Penalty, shape: tuple[int, ...]) -> None:
    w = torch.zeros(shape, requires_grad=True)
    value = penalty(w)
    assert value.shape == () and value.item() == 0.0
    torch.autograd.backward(value)


@ALL
def test_half_precision_computes_in_float32(penalty: Penalty) -> None:
    w = torch.full((300, 300), 3.0, dtype=torch.float16)  # the sum, 270000, is above float16's 65504
    assert penalty(w).dtype == torch.float32
    torch.testing.assert_close(penalty(w), penalty(w.float()), rtol=0, atol=0)


@ALL
def test_dtypes(penalty: Penalty) -> None:
    assert penalty(weights(3, 4)).dtype == torch.float64
    assert penalty(weights(3, 4, dtype=torch.complex64)).dtype == torch.float32
    assert penalty(weights(3, 4, dtype=torch.complex128)).dtype == torch.float64


@ALL
def test_nan_is_not_hidden(penalty: Penalty) -> None:
    assert penalty(torch.tensor([[1.0, math.nan]])).isnan()


@ALL
def test_sign_and_scale(penalty: Penalty) -> None:
    w = weights(3, 4)
    torch.testing.assert_close(penalty(-w), penalty(w))
    if penalty is not PENALTIES["log"]:
        torch.testing.assert_close(penalty(3 * w), 3 * penalty(w))


@ALL
def test_wrong_weights(penalty: Penalty) -> None:
    with pytest.raises(TypeError, match=r"`w` must be floating point or complex weights, got torch\.int64"):
        penalty(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_wrong_epsilon(epsilon: float) -> None:
    with pytest.raises(ValueError, match="`epsilon` must be a finite number above 0, got"):
        log_penalty(torch.ones(2), epsilon=epsilon)


@pytest.mark.parametrize("dim", [(), 2, -3, (0, 0), (0, -2), (0, 5)])
def test_wrong_dim(dim: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`dim` must name one or more different dimensions of `w`.*\(2, 3\)"):
        group_l1_penalty(torch.ones(2, 3), dim=dim)


def test_scalar_has_no_dimension() -> None:
    with pytest.raises(ValueError, match=r"`dim` must name"):
        group_l1_penalty(torch.tensor(1.0), dim=0)
