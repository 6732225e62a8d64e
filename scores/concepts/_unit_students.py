"""A tiny student for each unit: how well can what a unit says be read from the inputs by something tiny?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores._inputs import check_floating
from legibility.scores.concepts._linear_probe import standardised

LEAST_EXAMPLES = 64

_RESTARTS = 3
_RATE = 2e-2


@dataclass(frozen=True, eq=False)
class UnitReadings:
    """What the units' students learnt; NaN with a `reason`.

    Attributes:
        readability: median over live units of the share of a unit's variance that its student predicts on unseen
            inputs, up.
        permuted_readability: the same with each unit's values given to other inputs, the control: about 0 or below.
        per_unit: the shares, NaN for dead units.
        reason: why the others are NaN; empty otherwise.
    """

    readability: float
    permuted_readability: float
    per_unit: Float[Tensor, " units"]
    reason: str = ""


def unit_students(
    inputs: Float[Tensor, "examples ..."],
    activations: Float[Tensor, "examples units"],
    *,
    width: int = 4,
    steps: int = 300,
    seed: int = 0,
) -> UnitReadings:
    r"""Share of each unit's variance that a student of its own predicts: 1 - FVU.

    A student is `width` rectified hidden units beside a linear map. All are trained at once (AdamW, 2e-2 falling to 0,
    batches of 128, weight decay 1e-3) on half of the examples, the best of three starts counts, and they are measured
    on the other half.

    Card:
        Range and direction: (-inf, 1], higher = what single units say is simple in terms of the inputs; directed only among
        models that have learnt (`further_scores`). NaN if no unit
        varies. Cost: `9 * steps * 128 * features * width * units` multiplications, twice.
        Controls: permuted values (inside). A random-init network must stand beside it: its units are nearly linear in
        the inputs and **score well**. Says nothing about use, nor whether units say different things (`coverage` does).
        Gamed by: units that repeat an input or one another; dead units don't count.
        Invariant to scales and shifts of units and features. Not trained on, unless students of units took part.

    Args:
        inputs: what the reader is given, floating point: the model's inputs, or an earlier layer.
        activations: the units.
        width: of each student.
        steps: of training.
        seed: of split, initialisation and batches. The global random state isn't used.

    Returns:
        the readings.

    Raises:
        TypeError: if a tensor isn't floating point.
        ValueError: if shapes don't fit, there are fewer than 64 examples, or values aren't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import unit_students
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> found = unit_students(x, torch.stack([x[:, 0].abs(), x.sum(1)], 1))
        >>> found.readability > 0.9 and found.permuted_readability < 0.1
        True

    Source: of this project.
    """
    check_floating(inputs, "inputs")
    check_floating(activations, "activations")
    if inputs.ndim < 2 or activations.ndim != 2 or len(inputs) != len(activations):
        raise ValueError(
            "`inputs` must be (N, ...) and `activations` (N, units), got "
            f"{tuple(inputs.shape)} and {tuple(activations.shape)}."
        )
    if len(inputs) < LEAST_EXAMPLES:
        raise ValueError(f"`inputs` must hold at least {LEAST_EXAMPLES} examples, got {len(inputs)}.")
    if width < 1 or steps < 1:
        raise ValueError(f"`width` and `steps` must be at least 1, got {width} and {steps}.")
    for name, tensor in (("inputs", inputs), ("activations", activations)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"`{name}` must be finite.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    half = len(order) // 2
    x, units = inputs.detach().flatten(1)[order], activations.detach()[order]
    x = standardised(x, like=x[:half]).float()
    target = standardised(units, like=units[:half]).float()
    live = target[half:].square().sum(0) > 0
    per_unit = torch.full((units.shape[1],), math.nan, dtype=torch.float64, device=units.device)
    if not bool(live.any()):
        return UnitReadings(math.nan, math.nan, per_unit, "no unit of the layer varies")
    target = target[:, live]
    per_unit[live] = _learnt(x, target, half, width, steps, generator)
    shuffled = target[torch.randperm(len(target), generator=generator).to(target.device)]
    permuted = _learnt(x, shuffled, half, width, steps, generator)
    return UnitReadings(float(per_unit[live].median()), float(permuted.median()), per_unit)


def _learnt(
    x: Tensor, target: Tensor, half: int, width: int, steps: int, generator: torch.Generator
) -> Float[Tensor, " units"]:
    """Share of each unit's variance in the second half that its student, trained on the first, predicts."""
    features, units = x.shape[1], target.shape[1]
    wanted = target.repeat_interleave(_RESTARTS, 1)
    students = wanted.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "skip": (features, students),
        "in": (features, students * width),
        "hidden": (students, width),
    }
    shapes |= {"out": (students, width), "bias": (students,)}
    scales = {"skip": 0.0, "in": features**-0.5, "hidden": 1.0, "out": width**-0.5, "bias": 0.0}
    with torch.inference_mode(False), torch.enable_grad():
        weights = {
            name: (scales[name] * torch.randn(shape, generator=generator)).to(x.device).requires_grad_()
            for name, shape in shapes.items()
        }

        def predicted(rows: Tensor) -> Tensor:
            hidden = ((rows @ weights["in"]).view(-1, students, width) + weights["hidden"]).relu()
            bent: Tensor = (hidden * weights["out"]).sum(-1) + weights["bias"]
            straight: Tensor = rows @ weights["skip"]
            return straight + bent

        x, wanted = x.clone(), wanted.clone()
        optimizer = torch.optim.AdamW(list(weights.values()), lr=_RATE, weight_decay=1e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
            rows = torch.randint(half, (128,), generator=generator).to(x.device)
            optimizer.zero_grad()
            # A sum over students: they don't share anything.
            torch.autograd.backward((predicted(x[rows]) - wanted[rows]).square().mean(0).sum())
            optimizer.step()
        with torch.no_grad():
            error = (predicted(x) - wanted).double().square()
    # Chosen on what they were trained on, measured on the rest.
    best = error[:half].mean(0).view(units, _RESTARTS).argmin(1)
    unseen = error[half:].mean(0).view(units, _RESTARTS).gather(1, best.unsqueeze(1))[:, 0]
    return 1 - unseen / target[half:].double().var(0, correction=0)


class UnitStudents(Collected):
    """`unit_students` over everything that `update` was given (its card is there), ranks one after the other.

    `update(inputs, activations)`; `compute()` gives float64 scalars: `"readability"`, `"permuted_readability"`. Don't use
    `forward`, which would score each batch on its own.

    Args:
        width: of each student.
        steps: of training.
        seed: of split, initialisation and batches.
        limit: examples kept on each process; bounds the state at `limit` times one input and its activations.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `unit_students`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import UnitStudents
        >>> score = UnitStudents(steps=100)
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> score.update(x, x @ torch.ones(3, 2))
        >>> score.compute()["readability"].item() > 0.9
        True
    """

    # Higher is better only among layers that have learnt something: an untrained one is easily read.
    higher_is_better: bool | None = None

    def __init__(self, *, width: int = 4, steps: int = 300, seed: int = 0, limit: int = LIMIT, **kwargs: Any) -> None:
        super().__init__(("inputs", "activations"), limit=limit, **kwargs)
        self.settings: dict[str, Any] = {"width": width, "steps": steps, "seed": seed}

    def update(self, inputs: Tensor, activations: Tensor) -> None:
        """Add a batch: inputs and the units' activations on them."""
        self.keep({"inputs": inputs, "activations": activations})

    def findings(self) -> UnitReadings:
        """All readings on what this process holds."""
        return unit_students(self.needed("inputs"), self.needed("activations"), **self.settings)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        found = self.findings()
        values = {"readability": found.readability, "permuted_readability": found.permuted_readability}
        return named(values, self.needed("inputs").device)
