"""Feed-forward values read through the output head, and edited there: do they say what the model then answers?"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.scores._divergence import LEAST_INFORMATION, Rest, answers, information_bits
from legibility.scores._inputs import check_floating, check_mask

TRIGGERS = 10
"""Number of positions at which a memory is most active, where it is asked what it says."""

_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0)  # of an edit, in units of the value's own norm


@dataclass(frozen=True)
class MemoryReadings:
    """What the values say and what editing them does; shares, mean over the asked memories. NaN with a `reason`.

    Attributes:
        agreement: share of a memory's ten strongest positions where the model answers what the value says, up.
        permuted_agreement: the same with the values dealt to other units, the control.
        success: share of these positions that answer the new class after the edit, up.
        side_effects: share of the positions with another answer than the old one that the edit changes, down.
        specificity: `success - side_effects`, at the size of edit that makes it largest, up.
        control_specificity: the same for an edit of another unit's value: what any push towards the class does.
        memories: how many were asked.
        reason: why the others are NaN; empty otherwise.
    """

    agreement: float
    permuted_agreement: float
    success: float
    side_effects: float
    specificity: float
    control_specificity: float
    memories: int
    reason: str = ""


def key_value_memories(
    stream: Float[Tensor, "*batch units"],
    keys: Float[Tensor, "*batch memories"],
    values: Float[Tensor, "memories units"],
    unembedding: Float[Tensor, "classes units"],
    rest: Rest,
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    memories: int = 64,
    seed: int = 0,
) -> MemoryReadings:
    r"""A feed-forward layer as key-value memories: unit i adds `k_i(x) v_i` to the stream, and `v_i` names a class.

    - **Reading**: the value's class is `argmax U v_i`, `U` the output embedding. Agreement is how often the model answers
      that class at the ten positions where `k_i` is largest.
    - **Editing**: `v_i + s |v_i| (u_new - u_old) / |u_new - u_old|`, for the class that is answered most often at those
      positions (old) and a random other (new), at sizes s of 1, 2, 4, 8, 16. Success is the share of the positions that
      answer `new`; side effects the share of all positions with another answer than `old` that change theirs. The
      weights aren't touched: an edit changes the stream by `k_i(x)` times the difference.

    Card:
        Range and direction: shares; agreement, success and specificity up, side effects down. Read each beside its
        control. NaN for a model that is constant (< 0.05 bits about the input) or a layer in which no unit is active.
        Cost: 10 passes through `rest` for each memory.
        Controls: values dealt to other units; the same edit of another unit's value. A random-init model has neither
        agreement nor specificity beyond them.
        Gamed by: the last layer before the head, where every push succeeds; few classes. Not by temperature, nor by
        rescaled units (`k_i * s`, `v_i / s`).
        Not trained on.

    Args:
        stream: after the layer, `(N, ..., units)`.
        keys: what its inner units give after the nonlinearity.
        values: what each inner unit writes: rows of the second matrix's transpose (`linear.weight.T`).
        unembedding: a row for each class (`head.weight`), in the stream's coordinates.
        rest: the model from the stream to its logits, in evaluation mode.
        mask: positions that count; None means all.
        memories: how many units to ask, drawn at random from those that are ever active.
        seed: of the draws. The global random state isn't used.

    Returns:
        the readings.

    Raises:
        TypeError: if a tensor isn't floating point.
        ValueError: if shapes don't fit, fewer than 40 positions count, or values aren't finite.

    Example:
        >>> import torch
        >>> from legibility.scores import key_value_memories
        >>> classes = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
        >>> keys, names = torch.eye(5)[classes], 3 * torch.eye(5)
        >>> found = key_value_memories(keys @ names, keys, names, names, lambda h: h)
        >>> found.agreement, found.success, found.side_effects
        (1.0, 1.0, 0.0)

    Source: Geva et al., "Transformer feed-forward layers are key-value memories", 2021; editing after Dai et al.,
    "Knowledge neurons in pretrained transformers", 2022.
    """
    mask = _checked(stream, keys, values, unembedding, mask)
    if memories < 1:
        raise ValueError(f"`memories` must be at least 1, got {memories}.")
    stream, values, unembedding = stream.detach(), values.detach(), unembedding.detach()
    real = answers(rest, stream, mask)
    information = information_bits(real)
    if information < LEAST_INFORMATION:
        return _missing(f"the model is as good as constant: its answers carry {information:.2g} bits about the input")
    if real.shape[1] != len(unembedding):
        raise ValueError(
            f"`unembedding` must have a row for each of the {real.shape[1]} classes, got {len(unembedding)}."
        )
    active = keys.detach()[mask]
    # Ties, such as units that are on or off, are broken by chance, not by order.
    generator = torch.Generator().manual_seed(seed)
    live = ((active > 0).sum(0) >= TRIGGERS) & (values.norm(dim=1) > 0)
    alive = live.nonzero()[:, 0].cpu()
    if len(alive) < 2:
        return _missing("fewer than two units of the layer are active")
    chosen = alive[torch.randperm(len(alive), generator=generator)[:memories]].tolist()
    others = alive[torch.randperm(len(alive), generator=generator)].tolist()
    top = real.argmax(-1)
    named = (values @ unembedding.T).argmax(-1)
    editor = _Editor(stream, mask, keys.detach(), values, unembedding, rest, top)
    rows = []
    for unit in chosen:
        order = torch.randperm(len(active), generator=generator).to(active.device)
        triggers = order[active[order, unit].topk(TRIGGERS).indices]
        old = int(top[triggers].mode().values)
        new = int(torch.randint(len(unembedding) - 1, (), generator=generator))
        new += new >= old
        success, side = editor.best(unit, triggers, old, new)
        other = next(candidate for candidate in others if candidate != unit)
        others.append(others.pop(0))
        elsewhere = editor.best(other, triggers, old, new)
        said = (top[triggers] == named[unit]).double().mean()
        # Over all other values at once: the mean of all ways to deal one of them to this unit.
        dealt = named[[candidate for candidate in alive.tolist() if candidate != unit]]
        by_others = (top[triggers].unsqueeze(1) == dealt).double().mean()
        rows.append([float(said), float(by_others), success, side, success - side, elsewhere[0] - elsewhere[1]])
    agreement, permuted, success, side, specificity, control = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return MemoryReadings(agreement, permuted, success, side, specificity, control, len(chosen))


class _Editor:
    """Pushes one unit's value from one class towards another and sees which answers change."""

    def __init__(
        self,
        stream: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        unembedding: Tensor,
        rest: Rest,
        top: Tensor,
    ) -> None:
        self.stream, self.mask, self.keys, self.values = stream, mask, keys, values
        self.unembedding, self.rest, self.top = unembedding, rest, top

    def best(self, unit: int, triggers: Tensor, old: int, new: int) -> tuple[float, float]:
        """Success and side effects at the size where their difference is largest, the smallest of equals."""
        push = self.unembedding[new] - self.unembedding[old]
        push = push / push.norm().clamp(min=torch.finfo(push.dtype).tiny) * self.values[unit].norm()
        elsewhere = self.top != old
        elsewhere[triggers] = False
        tried = []
        for size in _SIZES:
            # Masked positions may hold anything; they stay as they are.
            change = torch.where(self.mask, self.keys[..., unit], 0.0).unsqueeze(-1) * (size * push)
            after = answers(self.rest, self.stream + change, self.mask).argmax(-1)
            success = float((after[triggers] == new).double().mean())
            changed = (after != self.top)[elsewhere].double()
            tried.append((success, float(changed.mean()) if len(changed) else 0.0))
        return max(tried, key=lambda pair: pair[0] - pair[1])


def _checked(stream: Tensor, keys: Tensor, values: Tensor, unembedding: Tensor, mask: Tensor | None) -> Tensor:
    given = {"stream": stream, "keys": keys, "values": values, "unembedding": unembedding}
    for name, tensor in given.items():
        check_floating(tensor, name)
    if stream.ndim < 2 or keys.shape[:-1] != stream.shape[:-1]:
        raise ValueError(
            f"`keys` must be (N, ..., memories) at the positions of `stream` {tuple(stream.shape)}, got "
            f"{tuple(keys.shape)}."
        )
    if values.shape != (keys.shape[-1], stream.shape[-1]):
        raise ValueError(
            f"`values` must be ({keys.shape[-1]}, {stream.shape[-1]}), a row for each memory, got "
            f"{tuple(values.shape)}: pass the transpose of a linear layer's weight."
        )
    if unembedding.ndim != 2 or unembedding.shape[1] != stream.shape[-1] or len(unembedding) < 2:
        raise ValueError(f"`unembedding` must be (classes, {stream.shape[-1]}), got {tuple(unembedding.shape)}.")
    check_mask(mask, stream)
    if mask is None:
        mask = torch.ones(stream.shape[:-1], dtype=torch.bool, device=stream.device)
    positions = int(mask.sum())
    if positions < 4 * TRIGGERS:
        raise ValueError(f"`stream` must hold at least {4 * TRIGGERS} unmasked positions, got {positions}.")
    for name, tensor in given.items():
        counted = tensor[mask] if name in ("stream", "keys") else tensor
        if not bool(torch.isfinite(counted).all()):
            raise ValueError(f"`{name}` must be finite where `mask` is True.")
    return mask


def _missing(reason: str) -> MemoryReadings:
    return MemoryReadings(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0, reason)
