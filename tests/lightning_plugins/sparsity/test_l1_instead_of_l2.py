"""L1InsteadOfL2: weight decay and dropout are off during the fit, and exactly as before afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, make_module, weights_of
from torch import nn

from legibility.lightning_plugins import L1InsteadOfL2


def with_dropout(pl: Any) -> Any:
    module = make_module(pl, optimizer="adamw", weight_decay=0.3)
    module.net.insert(2, nn.Dropout(0.4))
    return module


def test_a_fit_equals_one_that_never_had_them(pl: Any, trainer: Callable[..., Any]) -> None:
    module, plain = with_dropout(pl), make_module(pl, optimizer="adamw", weight_decay=0.0)
    callback = L1InsteadOfL2()
    fit = trainer(callback)
    fit.fit(module, loader())
    trainer().fit(plain, loader())
    assert torch.equal(weights_of(module), weights_of(plain))
    assert callback.changes == {"optimizer 0, group 0: weight_decay": 0.3, "net.2.p": 0.4}
    assert module.net[2].p == 0.4
    assert fit.optimizers[0].param_groups[0]["weight_decay"] == 0.3


def test_only_what_was_asked_for(pl: Any, trainer: Callable[..., Any]) -> None:
    callback = L1InsteadOfL2(weight_decay=False)
    trainer(callback).fit(with_dropout(pl), loader())
    assert list(callback.changes) == ["net.2.p"]
    with pytest.raises(ValueError, match="`weight_decay` and `dropout`"):
        L1InsteadOfL2(weight_decay=False, dropout=False)


def test_attributes_of_attention_and_recurrent_layers(pl: Any, trainer: Callable[..., Any]) -> None:
    module = make_module(pl)
    module.attention = nn.MultiheadAttention(4, 2, dropout=0.2)
    module.recurrent = nn.GRU(4, 4, num_layers=2, dropout=0.1)
    callback = L1InsteadOfL2()
    trainer(callback).fit(module, loader())
    assert callback.changes == {"attention.dropout": 0.2, "recurrent.dropout": 0.1}
    assert (module.attention.dropout, module.recurrent.dropout) == (0.2, 0.1)


def test_it_comes_back_after_an_exception(pl: Any, trainer: Callable[..., Any]) -> None:
    module = with_dropout(pl)

    class Boom(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            assert module.net[2].p == 0.0
            raise RuntimeError("boom")

    fit = trainer([L1InsteadOfL2(), Boom()])
    with pytest.raises(RuntimeError, match="boom"):
        fit.fit(module, loader())
    assert module.net[2].p == 0.4
    assert fit.optimizers[0].param_groups[0]["weight_decay"] == 0.3


def test_checkpoints_hold_the_users_weight_decay(pl: Any, trainer: Callable[..., Any], tmp_path: Path) -> None:
    module = with_dropout(pl)

    class Save(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.0
            trainer.save_checkpoint(tmp_path / "during.ckpt")

    trainer([L1InsteadOfL2(), Save()]).fit(module, loader())
    saved = torch.load(tmp_path / "during.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.3
    # Resuming with the callback switches it off again.
    callback = L1InsteadOfL2()
    trainer(callback, max_epochs=2).fit(with_dropout(pl), loader(), ckpt_path=str(tmp_path / "during.ckpt"))
    assert callback.changes["optimizer 0, group 0: weight_decay"] == 0.3
