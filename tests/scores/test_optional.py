"""Scores whose library isn't installed say what to install."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from legibility.scores import (
    Queries,
    TreeEstimator,
    held_out_imitation,
    relative_modularity,
    tree_path_length,
    wiring_cost,
)
from legibility.students import LinearStudent

INPUTS = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
QUERIES = Queries(INPUTS, INPUTS[:, :3] * 5)
NET = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("missing", "use", "message"),
    [
        ("networkx", lambda: relative_modularity(NET), r"Modularity needs networkx: .*\[graphs\]"),
        ("scipy.optimize", lambda: wiring_cost(NET), r"Wiring cost needs scipy: .*\[sklearn\]"),
        ("sklearn.tree", lambda: tree_path_length(QUERIES), r"Tree path length needs scikit-learn: .*\[sklearn\]"),
        (
            "sklearn.tree",
            lambda: held_out_imitation(QUERIES, [TreeEstimator()]),
            "without gradients needs scikit-learn",
        ),
        ("joblib", lambda: held_out_imitation(QUERIES, [TreeEstimator()]), "without gradients needs joblib"),
        ("joblib", lambda: held_out_imitation(QUERIES, [LinearStudent()] * 2, jobs=2), "`jobs` above 1 needs joblib"),
    ],
)
def test_a_missing_library_is_named(
    missing: str, use: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message):
        use()
