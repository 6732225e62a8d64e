"""Logit lens and tuned lens: what the output head makes of each layer, as it is and after the best affine translation."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from legibility.scores._divergence import LEAST_INFORMATION, answers, information_bits, kl_bits
from legibility.scores._inputs import check_floating, check_mask

PROTOCOL = "lens/1"
"""Version of the protocol; values of different versions must not be compared."""

LEAST_EXAMPLES = 32

Head = Callable[[Tensor], Tensor]
"""What reads the last layer: final norm and unembedding, `(N, ..., units)` to `(N, ..., classes)`."""

_RIDGES = (1e-4, 1e-2, 1.0)
_ROUNDS, _STEPS = 8, 3


@dataclass(frozen=True)
class LensAtDepth:
    """The lenses at one layer, in bits per position, on examples that no translator was fitted to.

    Attributes:
        logit_kl: `KL(p || head(h))`.
        tuned_kl: `KL(p || head(T h))`, `T` the layer's affine translator.
        gap: `(logit_kl - tuned_kl) / information`.
    """

    logit_kl: float
    tuned_kl: float
    gap: float


@dataclass(frozen=True)
class LensProfile:
    """The score and the depth profile; NaN where it can't be taken, and `reason` says why.

    Attributes:
        gap: mean over the layers, lower = the model speaks its output's language throughout.
        information: `KL(p || marginal)` in bits.
        layers: by name, in the order given. The profile over depth has no better direction.
        reason: why `gap` is NaN; empty otherwise.
        protocol: version of the protocol.
    """

    gap: float
    information: float
    layers: Mapping[str, LensAtDepth]
    reason: str = ""
    protocol: str = field(default=PROTOCOL)


def lens_profile(
    layers: Mapping[str, Float[Tensor, "*batch units"]],
    head: Head,
    logits: Float[Tensor, "*batch classes"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    seed: int = 0,
) -> LensProfile:
    r"""How much of a layer's answer is there but in another language than the output's: logit lens minus tuned lens.

        gap_l = [KL(p || head(h_l)) - KL(p || head(T_l h_l))] / KL(p || marginal),   gap = mean over layers

    `p` is the model's answer. The translator `T_l h = h (1 + A) + b` starts as the best of the identity, a constant
    and least squares towards the last layer (three ridges towards the identity), and is then refined on the KL by
    L-BFGS with early stopping. Three eighths of the examples fit it, one eighth chooses, one half is measured: the translator was
    fitted to neither.

    Card:
        Range and direction: usually [0, 1], lower = layers can be read with the model's own output head. About 0 for
        identity blocks; a layer that is rotated against the output has a large one, and so has one that doesn't know the
        answer yet but in which the head sees a confident wrong one. NaN for a model that is constant (< 0.05 bits about
        the input). What stays in the profile (`tuned_kl`) isn't computed yet at that depth: no direction.
        Cost: about 60 passes through the head on half of the examples for each layer; `limit` them for large vocabularies.
        Control: a random-init model has `information` near 0 and no score; amplified, its gap is no achievement.
        Gamed by: deep supervision (the head trained on middle layers), which lowers it by construction.
        Not by temperature: numerator and denominator move together (not exactly).
        Not trained on, unless the head was applied to middle layers in the loss.

    Args:
        layers: activations of a stream of one width, by name, from early to late; **the last is what the head reads**.
        head: final norm and unembedding, in evaluation mode. Its parameters get no gradient.
        logits: the model's real answers.
        mask: positions that count; None means all.
        seed: of the split. The global random state isn't used.

    Returns:
        the profile, with all layers but the last.

    Raises:
        TypeError: if a tensor isn't floating point.
        ValueError: if shapes don't fit (a model without such a stream has no lens), examples are fewer than 32, values
            aren't finite, or `head` of the last layer isn't `logits`.

    Example:
        >>> import torch
        >>> from legibility.scores import lens_profile
        >>> last = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> turned = last @ torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
        >>> found = lens_profile({"turned": turned, "same": last, "last": last}, lambda h: 3 * h, 3 * last)
        >>> round(found.layers["same"].gap, 3), found.layers["turned"].tuned_kl < 0.01, found.layers["turned"].gap > 1
        (0.0, True, True)

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020; Belrose et al., "Eliciting latent predictions from
    transformers with the tuned lens", 2023; least squares: Din et al., "Jump to conclusions", 2023.
    """
    mask = _checked(layers, logits, mask)
    real = logits.detach()[mask]
    information = information_bits(real)
    if information < LEAST_INFORMATION:
        reason = f"the model is as good as constant: its answers carry {information:.2g} bits about the input"
        return LensProfile(math.nan, information, {}, reason)
    *names, last = layers
    spoken = answers(head, layers[last].detach(), mask)
    if spoken.shape != real.shape or float(kl_bits(real, spoken).mean()) > 1e-3 * max(1.0, information):
        raise ValueError(
            f"`head` applied to the last of `layers`, '{last}', must give `logits`: pass the final norm and the "
            "unembedding, and the activations that they read."
        )
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    learn, choose, test = torch.tensor_split(order, (3 * len(order) // 8, len(order) // 2))
    found = {}
    with _with_gradients():
        for name in names:
            parts = [
                _Part(*(tensor.detach()[rows][mask[rows]].clone() for tensor in (layers[name], layers[last], logits)))
                for rows in (learn, choose, test)
            ]
            translator = _translator(head, parts[0], parts[1])
            kl = [parts[2].without_gradients(head, which) for which in (None, translator)]
            found[name] = LensAtDepth(kl[0], kl[1], (kl[0] - kl[1]) / information)
    return LensProfile(sum(depth.gap for depth in found.values()) / len(found), information, found)


@dataclass(frozen=True, eq=False)
class _Translator:
    weight: Tensor  # A
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden + hidden @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the positions: a layer, the last layer, the answers."""

    hidden: Tensor
    last: Tensor
    logits: Tensor

    def kl(self, head: Head, translator: _Translator | None) -> Tensor:
        """Mean bits between the answers and what the head reads here; infinite counts as infinite."""
        read = head(self.hidden if translator is None else translator(self.hidden))
        return kl_bits(self.logits, read).mean()

    def without_gradients(self, head: Head, translator: _Translator | None) -> float:
        """The same as a number; NaN, which a diverged translator gives, counts as infinite."""
        with torch.no_grad():
            value = float(self.kl(head, translator))
        return math.inf if math.isnan(value) else value


def _translator(head: Head, learn: _Part, choose: _Part) -> _Translator:
    units = learn.hidden.shape[1]
    nothing = _Translator(learn.hidden.new_zeros(units, units), learn.hidden.new_zeros(units))
    silent = _Translator(-torch.eye(units).to(learn.hidden), learn.last.mean(0))  # for a layer that knows nothing yet
    candidates = [nothing, silent, *(_least_squares(learn, ridge) for ridge in _RIDGES)]
    candidates.sort(key=lambda candidate: choose.without_gradients(head, candidate))
    best, least = candidates[0], choose.without_gradients(head, candidates[0])
    for start in candidates[:2]:
        for refined in _refined(head, learn, start):
            value = choose.without_gradients(head, refined)
            if value < least:
                best, least = refined, value
    return best


def _refined(head: Head, learn: _Part, start: _Translator) -> Iterator[_Translator]:
    """L-BFGS on the KL, a few steps at a time, with a ridge of one example's weight towards the start."""
    free = [start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()]
    scale = learn.hidden.std(0, correction=0).unsqueeze(1)
    optimizer = torch.optim.LBFGS(free, max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        ridge = (scale * (free[0] - start.weight)).square().sum() / len(learn.hidden)
        loss = learn.kl(head, _Translator(*free)) + ridge
        # Gradients of the translator only: the head's own must stay what they were.
        for parameter, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
            parameter.grad = gradient.contiguous()
        return loss.detach()

    for _ in range(_ROUNDS):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        yield _Translator(*(parameter.detach().clone() for parameter in free))


def _least_squares(part: _Part, ridge: float) -> _Translator:
    """Towards the last layer, with a ridge towards the identity in units of the layer's variance."""
    hidden, last = part.hidden.to(torch.float64), part.last.to(torch.float64)
    mean = hidden.mean(0)
    centred, wanted = hidden - mean, (last - last.mean(0)) - (hidden - mean)
    gram = centred.T @ centred
    gram = gram + ridge * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(gram, centred.T @ wanted)
    return _Translator(weight.to(part.hidden), (last.mean(0) - mean - mean @ weight).to(part.hidden))


@contextmanager
def _with_gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _checked(layers: Mapping[str, Tensor], logits: Tensor, mask: Tensor | None) -> Tensor:
    check_floating(logits, "logits")
    if len(layers) < 2:
        raise ValueError(f"`layers` must hold a layer and, last, what the head reads, got {list(layers)}.")
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(f"`logits` must be (N, ..., classes) of at least 2 classes, got {tuple(logits.shape)}.")
    check_mask(mask, logits)
    if mask is None:
        mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    shape = list(layers.values())[-1].shape
    for name, layer in layers.items():
        check_floating(layer, f"layers['{name}']")
        if layer.shape != shape or shape[:-1] != logits.shape[:-1]:
            raise ValueError(
                f"`layers['{name}']` must be {(*logits.shape[:-1], shape[-1])}, the head's width at every position, got "
                f"{tuple(layer.shape)}: only a stream of one width has a lens."
            )
        if not bool(torch.isfinite(layer[mask]).all()):
            raise ValueError(f"`layers['{name}']` must be finite where `mask` is True.")
    if not bool(torch.isfinite(logits[mask]).all()):
        raise ValueError("`logits` must be finite where `mask` is True.")
    examples = int(mask.flatten(1).any(1).sum()) if mask.ndim > 1 else int(mask.sum())
    if examples < LEAST_EXAMPLES:
        raise ValueError(f"`layers` must hold at least {LEAST_EXAMPLES} unmasked examples, got {examples}.")
    return mask
