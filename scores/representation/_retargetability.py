"""Can the frozen rest of a model be given another goal: what a new goal costs through it, in bits."""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from legibility.scores._inputs import check_floating
from legibility.scores.imitation._code_length import kt_code_length, prediction_code_length

_BLOCKS = 5
_LEAST_SAVING = 0.05  # of the null code, by which full retraining must beat the frozen random net


@dataclass(frozen=True)
class Retargeting:
    """Code lengths of the new goal, in bits, and what follows. NaN with a `reason`.

    Attributes:
        retargetability: `(random - frozen) / (random - full)`, higher = more of the model serves other goals too.
        frozen: through the frozen rest of the model.
        random: through the frozen rest of an untrained model: the control.
        full: with the rest retrained as well.
        null: without any model (Krichevsky-Trofimov).
        reason: why `retargetability` is NaN; empty otherwise.
    """

    retargetability: float
    frozen: float
    random: float
    full: float
    null: float
    reason: str = ""


def retargetability(
    activations: Float[Tensor, "examples ..."],
    goal: Int[Tensor, " examples"],
    rest: nn.Module,
    random_activations: Float[Tensor, "examples ..."],
    random_rest: nn.Module,
    *,
    passes: int = 10,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> Retargeting:
    r"""How cheaply a new goal is told to a model by changing what enters the rest of it, and nothing else.

    An affine map of the layer's last dimension, which starts as the identity, is trained so that the *frozen* rest
    answers the new labels. The cost is a code length: blocks of the examples double from 1/16 on, each is coded by what
    was learnt from all before it, the first by Krichevsky-Trofimov.

        retargetability = (random - frozen) / (random - full)

    `random` is the same through an untrained net (frozen too), `full` trains a copy of the rest along with the map.

    Card:
        Range and direction: about (-inf, 1], higher = the rest is a machine that other goals can use; 0 = no better than
        an untrained net; 1 = freezing costs nothing. NaN if full retraining saves less than 5 % of the null code beyond
        the random net (nothing to gain, as with permuted goals or a rest so short that a random one does).
        Cost: `3 * passes * 2 N` examples forward and backward through the rest.
        Control: the random net, inside. Compare only results for the same goal, examples and settings.
        Gamed by: a goal close to the old one; a wide last layer. Units of very different scale, and temperature, do
        matter: the map must undo them.
        Not trained on, unless several goals took part in training.

    Args:
        activations: what enters the rest, units in the last dimension; for images (channels) move them there.
        goal: new labels, classes of the rest's output.
        rest: the model from there to logits `(N, classes)`. It is copied; the original isn't touched.
        random_activations: the same layer of the untrained model for the same examples.
        random_rest: the rest of the untrained model.
        passes: epochs over what was seen, before each block.
        batch_size: of these.
        learning_rate: Adam's.
        seed: of the order of examples. The global random state isn't used.

    Returns:
        the code lengths.

    Raises:
        TypeError: if tensors have the wrong kind of numbers.
        ValueError: if shapes don't fit, there are fewer than 64 examples, or the rest gives no such classes.

    Example:
        >>> import torch
        >>> from legibility.scores import retargetability
        >>> h = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> found = retargetability(h, h.argmax(1), torch.nn.Identity(), h, torch.nn.Linear(4, 4), passes=2)
        >>> found.full < found.null
        True

    Source: the question is that of "retargeting the search" (Wentworth, 2022); prequential coding: Dawid, 1984.
    """
    for name, tensor in (("activations", activations), ("random_activations", random_activations)):
        check_floating(tensor, name)
        if tensor.ndim < 2 or len(tensor) != len(goal):
            raise ValueError(f"`{name}` must be ({len(goal)}, ..., units), got {tuple(tensor.shape)}.")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"`{name}` must be finite.")
    if goal.is_floating_point() or goal.ndim != 1:
        raise TypeError(f"`goal` must be integer class labels shaped (N,), got {goal.dtype} {tuple(goal.shape)}.")
    if len(goal) < 64:
        raise ValueError(f"`goal` must label at least 64 examples, got {len(goal)}.")
    if passes < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            f"`passes` and `batch_size` must be at least 1 and `learning_rate` positive, got {passes}, {batch_size}, "
            f"{learning_rate}."
        )
    settings = _Settings(passes, batch_size, learning_rate, seed)
    with _isolated(activations.device):
        frozen = _code_length(activations, goal, rest, settings, train_rest=False)
        random = _code_length(random_activations, goal, random_rest, settings, train_rest=False)
        full = _code_length(activations, goal, rest, settings, train_rest=True)
    null = float(kt_code_length(torch.bincount(goal)))
    if random - full < _LEAST_SAVING * null:
        reason = "full retraining codes the goal no better than a frozen random net: there is nothing to compare with"
        return Retargeting(math.nan, frozen, random, full, null, reason)
    return Retargeting((random - frozen) / (random - full), frozen, random, full, null)


@dataclass(frozen=True)
class _Settings:
    passes: int
    batch_size: int
    learning_rate: float
    seed: int


class _Translated(nn.Module):
    """The rest behind an affine map that starts as the identity."""

    def __init__(self, units: int, rest: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self.rest = rest

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.rest(hidden @ self.weight + self.bias)
        return logits


def _code_length(hidden: Tensor, goal: Tensor, rest: nn.Module, settings: _Settings, *, train_rest: bool) -> float:
    copied = copy.deepcopy(rest).eval().requires_grad_(train_rest)
    model = _Translated(hidden.shape[-1], copied).to(hidden.device, hidden.dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shuffle = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(goal), generator=shuffle).to(hidden.device)
    hidden, goal = hidden.detach()[order].clone(), goal[order]
    edges = [len(goal) >> (_BLOCKS - 1 - block) for block in range(_BLOCKS)]
    with torch.no_grad():
        logits = model(hidden[:2])
    if logits.ndim != 2 or logits.shape[1] < 2 or int(goal.max()) >= logits.shape[1] or int(goal.min()) < 0:
        raise ValueError(
            f"`goal` must be classes of the logits (N, classes) that `rest` gives, got {int(goal.min())}.."
            f"{int(goal.max())} for logits {tuple(logits.shape)}."
        )
    bits = float(kt_code_length(torch.bincount(goal[: edges[0]], minlength=int(goal.max()) + 1)))
    for seen, stop in itertools.pairwise(edges):
        optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
        for _ in range(settings.passes):
            for rows in torch.split(torch.randperm(seen, generator=shuffle), settings.batch_size):
                rows = rows.to(hidden.device)
                loss = nn.functional.cross_entropy(model(hidden[rows]), goal[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        with torch.no_grad():
            bits += float(prediction_code_length(model(hidden[seen:stop]), goal[seen:stop]).sum())
    return bits


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        yield
