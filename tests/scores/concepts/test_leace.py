import pytest
import torch
from torch import Tensor

from legibility.scores import leace_eraser


@pytest.fixture
def skewed() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=generator)
    h = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    return h + torch.randn(3, 6, generator=generator).double()[labels], labels


def test_is_the_eraser_of_the_library(skewed: tuple[Tensor, Tensor]) -> None:
    library = pytest.importorskip("concept_erasure")
    h, labels = skewed
    indicator = torch.nn.functional.one_hot(labels).double()
    fitter = library.LeaceFitter(6, 3, dtype=h.dtype, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9)
    expected = fitter.update(h, indicator).eraser(h)
    torch.testing.assert_close(leace_eraser(h, labels).erase(h), expected, rtol=1e-9, atol=1e-9)


def test_nothing_linear_is_left(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    erased = leace_eraser(h, labels).erase(h)
    means = torch.stack([erased[labels == value].mean(0) for value in range(3)])
    torch.testing.assert_close(means, h.mean(0).expand(3, 6), rtol=0, atol=1e-12)
    before = torch.stack([h[labels == value].mean(0) for value in range(3)])
    assert (before - h.mean(0)).norm() > 1  # there was something


def test_moves_less_than_the_orthogonal_projection(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    eraser = leace_eraser(h, labels)
    basis = torch.linalg.qr(eraser.left)[0]
    orthogonal = (h - h.mean(0)) @ basis @ basis.T
    assert (eraser.erase(h) - h).square().sum() < orthogonal.square().sum()


def test_erasing_twice_is_erasing_once(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    eraser = leace_eraser(h, labels)
    once = eraser.erase(h)
    torch.testing.assert_close(eraser.erase(once), once, rtol=0, atol=1e-12)
    torch.testing.assert_close(eraser.right @ eraser.left, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_affine_changes_of_the_units_change_nothing(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(6, 6, generator=generator).double() * torch.logspace(-3, 3, 6, dtype=torch.float64)
    expected = leace_eraser(h, labels).erase(h) @ change
    found = leace_eraser(h @ change + 5, labels).erase(h @ change + 5) - 5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_exchange_takes_the_concept_of_the_donor(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    eraser = leace_eraser(h, labels)
    donors = h.flip(0)
    exchanged = eraser.exchange(h, donors)
    torch.testing.assert_close(exchanged @ eraser.right.T, donors @ eraser.right.T)
    torch.testing.assert_close(eraser.erase(exchanged), eraser.erase(h))
    torch.testing.assert_close(eraser.exchange(h, h), h)


def test_dead_and_repeated_units_do_no_harm(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    wide = torch.cat([h, torch.full((400, 1), 0.1, dtype=h.dtype), h[:, :1]], 1)
    erased = leace_eraser(wide, labels).erase(wide)
    torch.testing.assert_close(erased[:, :6], leace_eraser(h, labels).erase(h), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(erased[:, 6], wide[:, 6], rtol=0, atol=1e-12)
    torch.testing.assert_close(erased[:, 7], erased[:, 0])


def test_dtype_is_kept_and_one_value_erases_nothing(skewed: tuple[Tensor, Tensor]) -> None:
    h = skewed[0].float()
    same = leace_eraser(h, torch.full((400,), 7))
    assert same.left.shape == (6, 0) and same.erase(h).dtype == torch.float32
    assert torch.equal(same.erase(h), h)


def test_errors(skewed: tuple[Tensor, Tensor]) -> None:
    h, labels = skewed
    with pytest.raises(TypeError, match="`activations` must be a floating point tensor"):
        leace_eraser(h.long(), labels)
    with pytest.raises(TypeError, match="`concepts` must be an integer or bool tensor"):
        leace_eraser(h, labels.float())
    with pytest.raises(ValueError, match="at least 64 unmasked positions, got 63"):
        leace_eraser(h[:63], labels[:63])
    with pytest.raises(ValueError, match=r"`activations` must be \(positions, units\)"):
        leace_eraser(h[None], labels)
    with pytest.raises(ValueError, match="must be finite"):
        leace_eraser(h.where(h < 3, torch.nan), labels)
