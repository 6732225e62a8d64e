"""L1 in, L2 and dropout out: do the units of an MLP on scikit-learn's digits become less polysemantic?

The premise of `L1InsteadOfL2`, put to the test: the MLP, the splits and the tuned settings of `digits`; L2 alone and
dropout alone are the tuned pair with one of them taken away. Scores of the test split, means over both hidden layers:

- selectivity: the share of a unit's variance that its best digit (against the rest) explains, mean over live units;
  "rotated" is the same layer after a random rotation, the control that knows as much and has no units; with permuted
  digits it is .008 everywhere. Coverage: the share of digits of which some unit means one (explains half of it).
- dimensionality: the share of a dimension that each feature has for itself in the weights that write it (canonical
  form). The untrained network wins this one, so differences between arms say little.

Expected, preset full (8 seeds), mean +- standard deviation; beyond rotation: selectivity minus rotated, paired, with
its 95 % t interval:

| arm | loss | accuracy | zeros | selectivity | rotated | beyond rotation | coverage | dimensionality |
|---|---|---|---|---|---|---|---|---|
| neither | .102 +- .029 | .971 | 0 | .265 +- .008 | .271 | -.006 +- .007 | .18 +- .07 | .169 +- .006 |
| l2-dropout | .054 +- .018 | .982 | 0 | .341 +- .010 | .316 | +.025 +- .010 | .57 +- .08 | .136 +- .004 |
| l2 | .063 +- .016 | .979 | 0 | .280 +- .012 | .288 | -.007 +- .008 | .29 +- .07 | .127 +- .005 |
| dropout | .105 +- .055 | .983 | 0 | .461 +- .011 | .323 | +.137 +- .009 | .90 +- .06 | .161 +- .004 |
| l1-instead | .094 +- .039 | .975 | .88 | .251 +- .009 | .254 | -.003 +- .010 | .16 +- .08 | .272 +- .012 |
| l1-beside | .063 +- .029 | .984 | .86 | .327 +- .018 | .290 | +.037 +- .013 | .68 +- .06 | .212 +- .005 |
| *untrained* | | | | *.145* | *.156* | *-.011* | *.10* | *.559* |

Against the premise: what makes single units mean single digits here is dropout (selectivity +.196 +- .010 against
neither), the very thing that "L1 in, dropout out" takes away. L1 in place of both leaves units as mixed as no
regulariser does (-.014 +- .008; nothing beyond a rotation) and .090 +- .010 below tuned L2 + dropout; beside light L2
and dropout it is as selective as the tuned pair (-.014 +- .017) with 86 % zeros. L2 alone does nothing beyond a
rotation. For the premise speaks only that features overlap less in sparse weights (dimensionality +.135 +- .010
against L2 + dropout), which any sparse matrix has, and an untrained one more. The digits' labels are the only
concepts asked about.
"""

import dataclasses
import math
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from legibility.lightning_plugins import InterpretabilityReport
from legibility.recipes import Arm, Preset, Recipe
from legibility.recipes.digits import RECIPE as DIGITS
from legibility.scores import FeatureDimensionality, canonicalise, monosemanticity, untrained
from legibility.tradeoff import ScoreEntry, save_record


class UnitScores(Callback):
    """Adds to the record of an InterpretabilityReport before it in the list what the digits' hidden units mean.

    Example:
        >>> UnitScores().LAYERS
        (2, 5)
    """

    LAYERS = (2, 5)  # after the ReLUs

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """The report has been written."""
        (report,) = (c for c in trainer.callbacks if isinstance(c, InterpretabilityReport))
        if report.record is None or report.path is None:
            return
        pixels, digits = trainer.datamodule.parts["test"].tensors
        found = unit_scores(pl_module.net, pixels, digits)
        with untrained(pl_module, 0):
            control = unit_scores(pl_module.net, pixels, digits)
        entries = [
            ScoreEntry(
                name, value, "units" if name == "digit_live_units" else "share", _DIRECTIONS.get(name, "higher"),
                control[name], "random-init", trained_on=False, reason="no unit varies" if math.isnan(value) else None,
            )
            for name, value in found.items()
        ]  # fmt: skip
        report.record = dataclasses.replace(report.record, scores=[*report.record.scores, *entries])
        save_record(report.record, report.path)


_DIRECTIONS: dict[str, Any] = {
    "digit_selectivity_permuted": None,
    "digit_selectivity_rotated": None,
    "digit_live_units": None,
}


@torch.no_grad()
def unit_scores(net: nn.Sequential, pixels: Tensor, digits: Tensor) -> dict[str, float]:
    """Selectivity, coverage, completeness and dimensionality with their controls; means over the hidden layers."""
    net.eval()
    concepts = nn.functional.one_hot(digits, 10)
    rows: list[dict[str, float]] = []
    for layer in UnitScores.LAYERS:
        hidden = net[:layer](pixels)
        found = monosemanticity(hidden, concepts)
        noise = torch.randn(hidden.shape[1], hidden.shape[1], generator=torch.Generator().manual_seed(0))
        turned = monosemanticity(hidden @ torch.linalg.qr(noise).Q, concepts)
        rows.append(
            {
                "digit_selectivity": found.selectivity,
                "digit_selectivity_permuted": found.permuted_selectivity,
                "digit_selectivity_rotated": turned.selectivity,
                "digit_coverage": found.coverage,
                "digit_completeness": found.completeness,
                "digit_live_units": float(found.live),
            }
        )
    shared = FeatureDimensionality()
    for name, weight in canonicalise(net).weights.items():
        # What pixels and first units write; the last layer writes logits. Units without influence are gone.
        if not name.startswith("6") and weight.numel() > 0:
            shared.update(weight.T)
    values = {f"feature_{name}": float(value) for name, value in shared.compute().items() if name != "random"}
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | values


def _both(**model: float) -> Arm:
    return Arm({"model": {"init_args": model}})


_TUNED = {"model": {"init_args": {"learning_rate": 5e-3, "weight_decay": 0.3, "dropout": 0.2}}}
_OUT = {"class_path": "legibility.lightning_plugins.L1InsteadOfL2"}

RECIPE = Recipe(
    name="l1_for_l2",
    question="Digits by an MLP: L1 in, L2 and dropout out. Do single units mean more?",
    arms={
        "neither": DIGITS.arms["plain"],
        "l2-dropout": DIGITS.arms["l2-dropout"],
        "l2": _both(learning_rate=2e-2, weight_decay=0.3),
        "dropout": _both(learning_rate=2e-2, dropout=0.2),
        "l1-instead": Arm(_TUNED, [_OUT, *DIGITS.arms["reweighted-heal"].callbacks]),
        "l1-beside": DIGITS.arms["reweighted-heal-light"],
    },
    baseline="neither",
    presets={"full": Preset(seeds=(0, 1, 2, 3, 4, 5, 6, 7), minutes=6)},
)
