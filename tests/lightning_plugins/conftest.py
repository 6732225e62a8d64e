"""What trains: both Lightning namespaces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import make_module


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def pl(request: pytest.FixtureRequest) -> Any:
    """A Lightning namespace; every test that trains runs in both."""
    return pytest.importorskip(request.param)


@pytest.fixture
def module(pl: Any) -> Any:
    """The classifier in the namespace under test."""
    return make_module(pl)


@pytest.fixture
def trainer(pl: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes a quiet CPU trainer."""

    def make(callbacks: Any = (), **options: Any) -> Any:
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
            "max_epochs": 1,
        }
        return pl.Trainer(**{**quiet, **options}, callbacks=callbacks)

    return make
