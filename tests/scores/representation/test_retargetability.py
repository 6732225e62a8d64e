import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from legibility.scores import retargetability

Digits = tuple[Tensor, Tensor]


def net() -> tuple[nn.Sequential, nn.Sequential]:
    body = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
    return body, nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def trained(digits: Digits, fit: Callable[..., Tensor]) -> tuple[Tensor, nn.Module, Tensor, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, rest = net()
        other_body, other_rest = net()
    inputs, labels = digits[0][:900], digits[1][:900]
    fit(nn.Sequential(body, rest), inputs[:500], labels[:500], epochs=40, learning_rate=3e-3)
    rest.zero_grad()
    return body(inputs[500:]).detach(), rest, other_body(inputs[500:]).detach(), other_rest


def test_a_trained_rest_takes_a_related_goal(
    trained: tuple[Tensor, nn.Module, Tensor, nn.Module], digits: Digits
) -> None:
    before = {name: value.clone() for name, value in trained[1].state_dict().items()}
    hidden, rest, other_hidden, other_rest = trained
    found = retargetability(hidden, (digits[1][500:900] + 3) % 10, rest, other_hidden, other_rest)
    assert found.full < found.random < 1.2 * found.null
    assert 0.2 < found.retargetability < 1.5
    assert all(torch.equal(value, before[name]) for name, value in rest.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in rest.parameters())


def test_an_untrained_rest_is_zero(trained: tuple[Tensor, nn.Module, Tensor, nn.Module], digits: Digits) -> None:
    _, _, other_hidden, other_rest = trained
    goal = digits[1][500:900]
    found = retargetability(other_hidden, goal, other_rest, other_hidden, other_rest, passes=6)
    assert found.frozen == found.random
    assert found.retargetability == 0.0


def test_a_goal_that_means_nothing_has_none(
    trained: tuple[Tensor, nn.Module, Tensor, nn.Module], digits: Digits
) -> None:
    goal = digits[1][500:900][torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = retargetability(trained[0], goal, *trained[1:], passes=2)
    assert found.full > 0.97 * found.null
    assert math.isnan(found.retargetability) and found.reason.startswith("full retraining codes the goal no better")


def test_is_a_function_of_its_arguments(trained: tuple[Tensor, nn.Module, Tensor, nn.Module], digits: Digits) -> None:
    state = torch.random.get_rng_state()
    goal = digits[1][500:600]
    hidden, rest, other_hidden, other_rest = trained
    with torch.inference_mode():
        one = retargetability(hidden[:100], goal, rest, other_hidden[:100], other_rest, passes=1)
    torch.manual_seed(3)
    two = retargetability(hidden[:100], goal, rest, other_hidden[:100], other_rest, passes=1)
    torch.random.set_rng_state(state)
    assert one.frozen == two.frozen and one.full == two.full


def test_errors(trained: tuple[Tensor, nn.Module, Tensor, nn.Module], digits: Digits) -> None:
    hidden, rest, other_hidden, other_rest = trained
    goal = digits[1][500:900]
    with pytest.raises(ValueError, match=r"`goal` must be classes of the logits \(N, classes\).*got 5..14"):
        retargetability(hidden, goal + 5, rest, other_hidden, other_rest)
    with pytest.raises(ValueError, match=r"`random_activations` must be \(400, ..., units\)"):
        retargetability(hidden, goal, rest, other_hidden[:5], other_rest)
    with pytest.raises(TypeError, match="`goal` must be integer class labels"):
        retargetability(hidden, goal.float(), rest, other_hidden, other_rest)
    with pytest.raises(ValueError, match="at least 64 examples, got 63"):
        retargetability(hidden[:63], goal[:63], rest, other_hidden[:63], other_rest)
    with pytest.raises(ValueError, match="`passes` and `batch_size` must be at least 1"):
        retargetability(hidden, goal, rest, other_hidden, other_rest, passes=0)
