"""The term of one call: by hand, and never moved by padding."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from legibility.lightning_plugins.foundation._recording import Recording
from legibility.lightning_plugins.imitation._legibility_term import describe, legibility_penalty, standardised_error
from legibility.students import ImitationLoss, Prediction

PADDING = [0.0, 1e6, math.nan]


def recorded(padding: float) -> tuple[Recording, Tensor]:
    """Two sentences of 3 and 2 words, padded to 4; and a student's answer."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    output, answer = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    output = torch.where(mask.unsqueeze(-1), output, torch.tensor(padding)).requires_grad_()
    return Recording((), {}, torch.zeros(2, 4, dtype=torch.long), mask, output), answer


def test_standardised_error_by_hand() -> None:
    primary, student = torch.tensor([[0.0, 2.0], [2.0, 6.0]]), torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    # Variances 1 and 4: errors (1/1 + 0)/2 and (0 + 16/4)/2.
    torch.testing.assert_close(standardised_error(primary, student), torch.tensor([0.5, 2.0]), rtol=1e-5, atol=0)
    alone = standardised_error(primary[:1], student[:1])
    torch.testing.assert_close(alone, torch.tensor([0.5]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("padding", PADDING)
def test_padding_moves_neither_term_nor_gradient(values: bool, padding: float) -> None:
    found = []
    for filled in (0.5, padding):
        recording, answer = recorded(filled)
        term, penalty = legibility_penalty(
            recording, [answer], [True], strength=1.0, direction="symmetric", values=values
        )
        assert penalty is not None
        found.append((term, penalty.gradients[0][1]))
    (term, gradient), (other, moved) = found
    assert term > 0
    assert recording.mask is not None
    assert not gradient[~recording.mask].any()
    torch.testing.assert_close(other, term)
    torch.testing.assert_close(moved, gradient)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("kind", ["distribution", "values"])
def test_padding_moves_nothing_that_is_logged(kind: Literal["distribution", "values"], padding: float) -> None:
    logs = []
    for filled in (0.5, padding):
        recording, answer = recorded(filled)
        told = {"mlp": ImitationLoss(torch.tensor(1.0), {})}
        logs.append(describe(kind, recording, [("mlp", Prediction(answer, {}))], told))
    assert logs[0].keys() == logs[1].keys()
    for name, value in logs[0].items():
        torch.testing.assert_close(torch.as_tensor(logs[1][name]), torch.as_tensor(value))
