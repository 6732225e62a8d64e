"""Orders in which parts of a model may be kept: by what they carry, by what the answer would miss, by a learned mask."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from legibility.scores.circuits._masked import MaskedModel

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""How much of everything is there when the gradient is taken."""

_LEARNING_RATE = 0.05
_PRICES = (0.02, 5.0)


def by_activation(masked: MaskedModel) -> dict[str, Tensor]:
    """`|w| std(h)`: how much of what varies goes over an edge; of a node, over all its edges together.

    In units of what reaches one unit of the layer, or how loud a layer is would decide whose parts come first.
    """
    found = {}
    for name in masked.layers:
        size = masked.weight(name).double().square().sum(-1)
        if masked.granularity == "nodes":
            size = size.sum(0)
        carried = size.sqrt() * masked.spread(name)
        reaches = (carried.square().sum() / len(masked.weight(name))).sqrt()
        found[name] = carried / reaches.clamp(min=torch.finfo(carried.dtype).tiny)
    return found


def by_gradient(masked: MaskedModel, rows: Tensor) -> dict[str, Tensor]:
    """`|dL/dM|`, which for an edge is `|w dL/dw|` with its input centred, `L` the divergence from the full model.

    At the full model that gradient is zero, for nothing diverges there. It is therefore added up on the way from
    nothing to everything (integrated gradients).
    """
    total = {name: torch.zeros_like(mask, dtype=torch.float64) for name, mask in masked.nothing().items()}
    for level in LEVELS:
        masks = {name: (live * level).requires_grad_() for name, live in masked.everything().items()}
        for part in torch.split(rows, masked.batch_size):
            if bool(masked.counted[part].any()):
                loss = masked.divergence(masks, part) * len(part)
                for name, slope in zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True):
                    total[name] += slope.double()
    return {name: value.abs() for name, value in total.items()}


class _Heaviside(torch.autograd.Function):
    """1 above 0, else 0; backwards as if it were a sigmoid."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors  # type: ignore[attr-defined]
        share = value.sigmoid()
        found: Tensor = gradients[0] * share * (1 - share)
        return found


def learned(
    masked: MaskedModel,
    start: Mapping[str, Tensor],
    rows: Tensor,
    whole: float,
    *,
    steps: int,
    seed: int,
    advance: Callable[[], None],
) -> Iterator[dict[str, Tensor]]:
    """Masks on the way from everything to little, while the price of a kept part rises.

    Minimises `KL(f || f_M) / KL(f || f_none) + price * share kept` by Adam over one number per part, of which the sign
    says whether it is kept.

    Args:
        masked: the model.
        start: a ranking; its last part is the first near zero.
        rows: what is learnt from.
        whole: `KL(f || f_none)`.
        steps: of the optimizer.
        seed: of the order of rows.
        advance: called after each step.

    Yields:
        a mask after every fifth step.
    """
    live = masked.live
    thoughts = {name: (0.1 + 0.9 * place).float().requires_grad_() for name, place in _quantiles(start, live).items()}
    count = sum(int(mask.sum()) for mask in live.values())
    optimizer = torch.optim.Adam(list(thoughts.values()), lr=_LEARNING_RATE)
    shuffle = torch.Generator().manual_seed(seed)
    for step in range(steps):
        low, high = _PRICES
        price = low * (high / low) ** (step / max(1, steps - 1))
        part = rows[torch.randperm(len(rows), generator=shuffle)[: masked.batch_size]]
        masks = {name: _keep(thoughts[name]) * live[name] for name in live}
        if bool(masked.counted[part].any()):
            kept = torch.stack([mask.sum() for mask in masks.values()]).sum() / count
            loss = masked.divergence(masks, part) / whole + price * kept
            for thought, slope in zip(
                thoughts.values(), torch.autograd.grad(loss, list(thoughts.values())), strict=True
            ):
                thought.grad = slope
            optimizer.step()
        advance()
        if step % 5 == 4 or step == steps - 1:
            yield {name: (thoughts[name].detach() > 0).float() * live[name] for name in live}


def _keep(thought: Tensor) -> Tensor:
    found: Tensor = _Heaviside.apply(thought)  # type: ignore[no-untyped-call]
    return found


def _quantiles(ranking: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each live part's place in the order, 0 to 1; 0 for the others."""
    values = torch.cat([ranking[name][live[name]] for name in live])
    places = torch.empty_like(values)
    places[values.argsort(stable=True)] = torch.linspace(0, 1, len(values), dtype=values.dtype, device=values.device)
    found, begin = {}, 0
    for name, mask in live.items():
        grid = torch.zeros_like(ranking[name])
        size = int(mask.sum())
        grid[mask] = places[begin : begin + size]
        begin += size
        found[name] = grid
    return found
