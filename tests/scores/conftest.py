"""What the tests of the scores share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits in a fixed random order: (1797, 64) in [0, 1], and their labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16.0, dtype=torch.float32)[order], torch.tensor(data.target)[order]


@pytest.fixture(scope="session")
def fit() -> Callable[..., Tensor]:
    """Trains a model on all of (inputs, labels) and returns its logits on them."""

    def train(
        model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, learning_rate: float, batch_size: int = 64
    ) -> Tensor:
        shuffle = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(inputs), generator=shuffle), batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(inputs[rows]), labels[rows]))
                optimizer.step()
        with torch.no_grad():
            logits: Tensor = model(inputs)
        return logits

    return train
