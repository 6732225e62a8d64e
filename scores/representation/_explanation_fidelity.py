"""Explanation fidelity: how well a linear function explains a model in the neighbourhood of an input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from legibility.scores._collected import LIMIT, Collected, named
from legibility.scores._inputs import check_floating


@dataclass(frozen=True)
class ExplanationFidelity:
    """How far local linear explanations are from the model. NaN with a `reason`.

    Attributes:
        error: mean squared error of the explanations on fresh neighbours as a share of the outputs' variance over the
            data, lower = explanations can be trusted.
        unexplained: the same as a share of the outputs' variance within the neighbourhoods: the curvature alone, down.
        movement: variance within the neighbourhoods as a share of that over the data: what there was to explain.
        reason: why the others are NaN; empty otherwise.
    """

    error: float
    unexplained: float
    movement: float
    reason: str = ""


def explanation_fidelity(
    inputs: Float[Tensor, "examples ..."],
    model: Callable[[Tensor], Tensor],
    *,
    radius: float = 0.1,
    points: int = 64,
    directions: int = 16,
    seed: int = 0,
) -> ExplanationFidelity:
    r"""Error of local linear fits: the neighbourhood fidelity of ExpO, on the scale of the outputs' variance.

    Around each of `points` inputs x, neighbours `x + radius * sigma * (V e)` are drawn, `sigma` each feature's standard
    deviation over the data, `V` random orthonormal directions and `e` standard normal. Least squares fits the outputs
    linearly in `e` on `4 (directions + 1)` neighbours; as many fresh ones measure

        error = mean over points and neighbours of |f(x') - g_x(x')|^2 / sum of the outputs' variances over the data

    Card:
        Range and direction: [0, inf), lower = more faithful explanations. NaN for a model whose outputs don't vary.
        Cost: `8 * points * (directions + 1)` inputs through the model.
        Control: a random-init network, which is nearly linear and therefore **scores well**; so does any smoother model.
        `movement` tells a faithful model from one that ignores small changes. Never read it without the task loss.
        Gamed by: smoothness (weight decay, label smoothing), and by temperature where outputs are probabilities.
        Invariant to scales of features and to one scale of all outputs.
        Not trained on, unless a local-fit term was in the loss.

    Args:
        inputs: floating point; tokens have no neighbourhood.
        model: inputs to outputs `(N, outputs)`: values of a regression, or probabilities of a classifier. Called
            without gradients, in evaluation mode.
        radius: of the neighbourhood, in standard deviations of the features.
        points: number of inputs explained, at random.
        directions: dimensions of a neighbourhood; at most the number of features that vary.
        seed: of points and neighbours. The global random state isn't used.

    Returns:
        the errors.

    Raises:
        TypeError: if `inputs` isn't floating point.
        ValueError: if there are fewer than 2 inputs, values aren't finite, or an argument is out of range.

    Example:
        >>> import torch
        >>> from legibility.scores import explanation_fidelity
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> explanation_fidelity(x, lambda x: x @ torch.ones(3, 2).double()).error < 1e-20
        True

    Source: Plumb et al., "Regularizing black-box models for improved interpretability" (ExpO), 2020; local fits: Ribeiro
    et al., "Why should I trust you?" (LIME), 2016.
    """
    check_floating(inputs, "inputs")
    if inputs.ndim < 2 or len(inputs) < 2:
        raise ValueError(f"`inputs` must be (N, ...) with N >= 2, got {tuple(inputs.shape)}.")
    if not bool(torch.isfinite(inputs).all()):
        raise ValueError("`inputs` must be finite.")
    if not radius > 0 or points < 1 or directions < 1:
        raise ValueError(
            f"`radius`, `points` and `directions` must be positive, got {radius}, {points} and {directions}."
        )
    generator = torch.Generator().manual_seed(seed)
    flat = inputs.detach().flatten(1)
    deviation = flat.double().std(0, correction=0)
    live = (deviation > 1e-7 * flat.double().square().mean(0).sqrt()).nonzero()[:, 0].cpu()
    if len(live) == 0:
        raise ValueError("`inputs` must vary in at least one feature.")
    spread = _outputs(model, inputs.detach()).var(0, correction=0).sum()
    scale = _outputs(model, inputs.detach()).square().mean(0).sum()
    if not spread > 1e-12 * scale:
        return ExplanationFidelity(math.nan, math.nan, math.nan, "the model's outputs don't vary over the inputs")
    directions = min(directions, len(live))
    number = 4 * (directions + 1)
    errors, variances = [], []
    for row in torch.randperm(len(inputs), generator=generator)[:points].tolist():
        basis = torch.zeros(directions, flat.shape[1], dtype=torch.float64)
        drawn = torch.randn(len(live), directions, generator=generator, dtype=torch.float64)
        basis[:, live] = torch.linalg.qr(drawn)[0].T
        steps = torch.randn(2 * number, directions, generator=generator, dtype=torch.float64)
        moved = radius * (steps @ basis).to(flat.device) * deviation
        neighbours = (flat[row].double() + moved).to(flat).view(-1, *inputs.shape[1:])
        outputs = _outputs(model, neighbours)
        # The step that was really taken: float32 inputs round it.
        taken = ((neighbours.flatten(1).double() - flat[row].double()) / (radius * deviation.clamp(min=1e-300))).cpu()
        taken = torch.where(deviation.cpu() > 0, taken, 0.0) @ basis.T
        design = torch.cat([taken, torch.ones(2 * number, 1, dtype=torch.float64)], 1).to(outputs.device)
        fitted = torch.linalg.lstsq(design[:number], outputs[:number]).solution
        errors.append((outputs[number:] - design[number:] @ fitted).square().sum(1).mean())
        variances.append(outputs[number:].var(0, correction=0).sum())
    error, variance = float(torch.stack(errors).mean()), float(torch.stack(variances).mean())
    return ExplanationFidelity(
        error=error / float(spread),
        unexplained=error / variance if variance > 0 else math.nan,
        movement=variance / float(spread),
    )


@torch.no_grad()
def _outputs(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    outputs = torch.cat([model(part) for part in torch.split(inputs, 1024)])
    check_floating(outputs, "model(inputs)")
    if outputs.shape[:1] != inputs.shape[:1] or not bool(torch.isfinite(outputs).all()):
        raise ValueError(f"`model` must give finite outputs ({len(inputs)}, ...), got {tuple(outputs.shape)}.")
    return outputs.flatten(1).double()


class LocalFidelity(Collected):
    """`explanation_fidelity` over everything that `update` was given (its card is there), ranks one after the other.

    `update(inputs)`; `compute()` gives float64 scalars: `"error"`, `"unexplained"`, `"movement"`. Don't use `forward`.

    Args:
        model: inputs to outputs, in evaluation mode.
        radius: as there, like the others: `points`, `directions`, `seed`.
        limit: examples kept on each process; bounds the state at `limit` times one input.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: as `explanation_fidelity`, on `compute`.

    Example:
        >>> import torch
        >>> from legibility.scores import LocalFidelity
        >>> score = LocalFidelity(lambda x: x.double().sum(1, keepdim=True))
        >>> score.update(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
        >>> score.compute()["error"].item() < 1e-10
        True
    """

    # Lower is better only among models that have learnt equally much: an untrained one has the lowest.
    higher_is_better: bool | None = None

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        radius: float = 0.1,
        points: int = 64,
        directions: int = 16,
        seed: int = 0,
        limit: int = LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(("inputs",), limit=limit, **kwargs)
        self._model = (model,)  # not a submodule: the score's state must not hold the model
        self.settings: dict[str, Any] = {"radius": radius, "points": points, "directions": directions, "seed": seed}

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs."""
        self.keep({"inputs": inputs})

    def findings(self) -> ExplanationFidelity:
        """The errors on what this process holds."""
        return explanation_fidelity(self.needed("inputs"), self._model[0], **self.settings)

    def compute(self) -> dict[str, Tensor]:
        """The errors by name."""
        found = self.findings()
        values = {"error": found.error, "unexplained": found.unexplained, "movement": found.movement}
        return named(values, self.needed("inputs").device)
