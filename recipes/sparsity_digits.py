"""Task loss against exact zeros: which way of making an MLP on scikit-learn's digits sparse is on the front?

The MLP, the splits and the schedule of `digits`, so the settings that were tuned there; each method at four strengths.
Rivals: L1 in the loss, and Lightning's ModelPruning (global magnitude at half-time, then fine-tuning). torchao's
proximal optimizer (PAT) needs a library of its own: `benchmarks/sparsity_pat.py` is the same recipe for it, and its
records compare with these.

"""

import functools
from typing import Any

from pytorch_lightning.callbacks import ModelPruning

from legibility.recipes import Arm, Preset, Recipe


class PruneOnce(ModelPruning):
    """Lightning's ModelPruning, once: the smallest weights of all layers together, then fine-tuning.

    Args:
        amount: Share of all weights.
        epoch: After which epoch (from 0).

    Example:
        >>> PruneOnce(0.9, 99)._use_global_unstructured
        True
    """

    def __init__(self, amount: float, epoch: int) -> None:
        super().__init__(
            "l1_unstructured",
            parameter_names=["weight"],
            amount=amount,
            apply_pruning=functools.partial(int.__eq__, epoch),
            use_lottery_ticket_hypothesis=False,
        )


def _plugin(name: str, **settings: Any) -> dict[str, object]:
    return {"class_path": f"legibility.lightning_plugins.{name}", "init_args": settings}


def _arm(callback: dict[str, object] | None = None, **settings: float) -> Arm:
    return Arm({"model": {"init_args": settings}}, [] if callback is None else [callback])


def _pruned(amount: float) -> dict[str, object]:
    return {"class_path": "legibility.recipes.sparsity_digits.PruneOnce", "init_args": {"amount": amount, "epoch": 99}}


_DENSITIES = (0.7, 0.9, 0.95, 0.97)

RECIPE = Recipe(
    name="sparsity_digits",
    question="Digits by an MLP: task loss against exact zeros. Which way of becoming sparse is on the front?",
    arms={
        "plain": _arm(learning_rate=1e-3),
        "l2-dropout": _arm(learning_rate=2e-2, weight_decay=0.3, dropout=0.2),
        **{f"l1-in-loss-{s:g}": _arm(learning_rate=1e-2, l1=s) for s in (3e-5, 1e-4, 3e-4, 1e-3)},
        **{
            f"proximal-{s}": _arm(_plugin("L1Sparsity", strength=s, reweighted=False, heal=0.0), learning_rate=1e-2)
            for s in (6, 12, 24, 48)
        },
        **{
            f"reweighted-heal-{s}": _arm(_plugin("L1Sparsity", strength=s, heal=0.35), learning_rate=5e-3)
            for s in (48, 96, 192, 384)
        },
        **{
            f"group-{s}": _arm(_plugin("GroupSparsity", strength=s, groups="neurons"), learning_rate=5e-3)
            for s in (2, 4, 8, 16)
        },
        **{f"top-k-{1 - s:.2f}": _arm(_plugin("TopKSparsity", sparsity=s), learning_rate=5e-3) for s in _DENSITIES},
        **{f"pruning-{1 - s:.2f}": _arm(_pruned(s), learning_rate=5e-3) for s in _DENSITIES},
    },
    presets={"quick": Preset(seeds=(0,), minutes=2), "full": Preset(seeds=(0, 1, 2, 3, 4, 5, 6, 7), minutes=12)},
)
