import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from legibility.scores import Queries, tree_path_length

pytest.importorskip("sklearn")


def asked(top: Tensor, inputs: Tensor, labels: Tensor | None = None) -> Queries:
    return Queries(inputs, functional.one_hot(top.long(), 4).float() * 5, labels)


@pytest.fixture
def inputs() -> Tensor:
    return torch.rand(1000, 4, generator=torch.Generator().manual_seed(0))


def test_a_tree_that_is_known(inputs: Tensor) -> None:
    # One question settles half, two a quarter, three the rest: 1/2 + 2/4 + 3/4 = 1.75 questions.
    x = inputs
    top = torch.where(x[:, 0] < 0.5, 0, torch.where(x[:, 1] < 0.5, 1, torch.where(x[:, 2] < 0.5, 2, 3)))
    found = tree_path_length(asked(top, x), fidelity=0.97)
    assert found.leaves == 4 and found.value == pytest.approx(1.75, abs=0.1) and found.agreement >= 0.97
    easier = tree_path_length(asked(top, x), fidelity=0.7)
    assert easier.value == 1.0 and easier.leaves == 2  # a half and a quarter are right


def test_a_slanted_border_takes_more_questions_than_a_straight_one(inputs: Tensor) -> None:
    straight = tree_path_length(asked(inputs[:, 0] > 0.5, inputs))
    slanted = tree_path_length(asked(inputs[:, 0] + inputs[:, 1] > 1, inputs))
    assert straight.value == 1.0 and slanted.value > 2.0


def test_the_twin_is_the_task(inputs: Tensor) -> None:
    labels = (inputs[:, 0] + inputs[:, 1] > 1).long()
    found = tree_path_length(asked(inputs[:, 0] > 0.5, inputs, labels))  # a simpler model of it
    assert found.value == 1.0 and found.twin > 2.0


def test_scaling_features_or_answers_changes_nothing(inputs: Tensor) -> None:
    top = inputs[:, 0] + inputs[:, 1] > 1
    base = tree_path_length(asked(top, inputs))
    queries = asked(top, inputs * torch.tensor([1.0, 64.0, 0.125, 8.0]))
    assert tree_path_length(queries) == base
    assert tree_path_length(Queries(inputs, asked(top, inputs).logits / 4)) == base


def test_models_without_a_tree_say_why(inputs: Tensor) -> None:
    noise = torch.randint(0, 4, (1000,), generator=torch.Generator().manual_seed(1))
    found = tree_path_length(asked(noise, inputs))
    assert math.isnan(found.value) and found.reason is not None and found.reason.startswith("no tree agrees more than")
    assert found.best_agreement < 0.35
    constant = tree_path_length(asked(torch.zeros(1000), inputs))
    assert constant.reason == "the primary is constant: its top-1 never changes"
    rare = tree_path_length(asked(inputs[:, 0] > 0.97, inputs))
    assert rare.reason is not None and rare.reason.startswith("the commonest decision alone has a share of 0.9")
    tokens = Queries(torch.randint(0, 5, (100, 3)), torch.randn(100, 4))
    assert tree_path_length(tokens).reason == "trees read rows of numbers, not tokens"


def test_errors(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`fidelity` must be in \(0, 1\], got 0"):
        tree_path_length(asked(inputs[:, 0] > 0.5, inputs), fidelity=0)
    with pytest.raises(ValueError, match="`queries` must hold at least 64 that count, got 40"):
        tree_path_length(asked(inputs[:40, 0] > 0.5, inputs[:40]))
