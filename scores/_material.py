"""What scores are taken of: a model, its answers, and what is known about the task; and models that mustn't win."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from legibility.scores._untrained import untrained
from legibility.scores.imitation._queries import Queries

Need = Literal["model", "labels", "shifted"]
Forward = Callable[[nn.Module, Tensor], Tensor]
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that a score may ask for.

    Attributes:
        queries: the primary's answers, with true labels where they are known.
        model: the primary; None if only its answers are at hand.
        forward: `(model, rows of the inputs) -> logits`; None calls the model.
        shifted: its answers on data from another distribution, with labels.

    Example:
        >>> import torch
        >>> from legibility.scores import Material
        >>> model, inputs = torch.nn.Linear(4, 3), torch.randn(64, 4)
        >>> material = Material.ask(model, inputs)
        >>> material.has("model"), material.has("labels")
        (True, False)
    """

    queries: Queries
    model: nn.Module | None = None
    forward: Forward | None = None
    shifted: Queries | None = None

    @classmethod
    def ask(
        cls,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        forward: Forward | None = None,
    ) -> "Material":
        """Puts the inputs to the model, in evaluation mode.

        Args:
            model: the primary; it is left in the mode it was in.
            inputs: `(N, ...)`, on its device.
            labels: true classes, shaped like the logits without classes.
            mask: bool, the positions that count.
            forward: `(model, rows) -> logits`; None calls the model.

        Returns:
            the material.
        """
        return cls(Queries(inputs, answers(model, inputs, forward), labels, mask), model, forward)

    def has(self, need: Need) -> bool:
        """Whether that is at hand."""
        return {
            "model": self.model is not None,
            "labels": self.queries.labels is not None,
            "shifted": self.shifted is not None and self.shifted.labels is not None,
        }[need]

    def of(self, model: nn.Module, forward: Forward | None = None) -> "Material":
        """The same questions put to another model."""
        forward = self.forward if forward is None else forward

        def asked(queries: Queries) -> Queries:
            return replace(queries, logits=answers(model, queries.inputs, forward), taps={})

        shifted = None if self.shifted is None else asked(self.shifted)
        return Material(asked(self.queries), model, forward, shifted)


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor, forward: Forward | None) -> Tensor:
    """The model's logits on all inputs, in evaluation mode, batch by batch."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        parts = [model(rows) if forward is None else forward(model, rows) for rows in torch.split(inputs, _BATCH)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts).float()


@dataclass(frozen=True)
class Control(ABC):
    """A model that a score must not prefer, made from the one at hand without training."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is printed beside the score."""

    @abstractmethod
    def apply(self, material: Material) -> Material | str:
        """The control's material, or why there is none."""


@dataclass(frozen=True)
class RandomInit(Control):
    """The architecture with freshly drawn weights: what is there before training.

    Attributes:
        seed: of the draw; the global random stream is left alone.

    Example:
        >>> import torch
        >>> from legibility.scores import Material, RandomInit
        >>> model, inputs = torch.nn.Linear(4, 3), torch.randn(64, 4)
        >>> material = Material.ask(model, inputs)
        >>> control = RandomInit().apply(material)
        >>> bool((control.queries.logits != material.queries.logits).all())
        True
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """`random-init`."""
        return "random-init"

    def apply(self, material: Material) -> Material | str:
        """Asks an untrained copy."""
        if material.model is None:
            return "needs the model"
        with untrained(material.model, self.seed):
            twin = copy.deepcopy(material.model)
        return material.of(twin)


@dataclass(frozen=True)
class ConstantModel(Control):
    """The model with all its matrices at zero: it says the same whatever it reads.

    Example:
        >>> import torch
        >>> from legibility.scores import ConstantModel, Material
        >>> material = Material.ask(torch.nn.Linear(4, 3), torch.randn(64, 4))
        >>> logits = ConstantModel().apply(material).queries.logits
        >>> bool((logits == logits[0]).all())
        True
    """

    @property
    def name(self) -> str:
        """`constant`."""
        return "constant"

    def apply(self, material: Material) -> Material | str:
        """Asks a copy without weights; without a model, its mean answer stands for all."""
        if material.model is None:
            queries = material.queries
            mean = queries.logits[queries.counted].mean(0)
            return Material(replace(queries, logits=mean.expand_as(queries.logits).clone(), taps={}))
        twin = copy.deepcopy(material.model)
        with torch.no_grad():
            for parameter in twin.parameters():
                if parameter.ndim > 1:
                    parameter.zero_()
        return material.of(twin)


@dataclass(frozen=True)
class PermutedAnswers(Control):
    """The answers dealt out anew among the inputs: a primary that learnt random labels by heart. The true labels stay.

    Attributes:
        seed: of the permutation.

    Example:
        >>> import torch
        >>> from legibility.scores import Material, PermutedAnswers
        >>> material = Material.ask(torch.nn.Linear(4, 3), torch.randn(64, 4))
        >>> PermutedAnswers().apply(material).model is None  # no model answers like this
        True
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """`permuted answers`."""
        return "permuted answers"

    def apply(self, material: Material) -> Material | str:
        """Shuffles rows; the positions of a sequence stay together."""

        def dealt(queries: Queries) -> Queries:
            order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(self.seed))
            # Padding has answers too, and they may be anything: only positions that count both before and after do.
            mask = None if queries.mask is None else queries.mask & queries.mask[order]
            return Queries(queries.inputs, queries.logits[order], queries.labels, mask)

        return Material(dealt(material.queries), shifted=None if material.shifted is None else dealt(material.shifted))


@dataclass(frozen=True)
class Temperature(Control):
    """The same model with flatter answers: its logits divided by `by`.

    Attributes:
        by: the temperature, above 0.

    Example:
        >>> import torch
        >>> from legibility.scores import Material, Temperature
        >>> material = Material.ask(torch.nn.Linear(4, 3), torch.randn(64, 4))
        >>> flat = Temperature(4.0).apply(material)
        >>> torch.allclose(flat.queries.logits * 4, material.queries.logits)
        True
    """

    by: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 < self.by < float("inf"):
            raise ValueError(f"`by` must be a temperature above 0, got {self.by}.")

    @property
    def name(self) -> str:
        """`temperature 4`."""
        return f"temperature {self.by:g}"

    def apply(self, material: Material) -> Material | str:
        """Divides the answers, and those that the model will give."""

        def flat(queries: Queries) -> Queries:
            return replace(queries, logits=queries.logits / self.by)

        def forward(model: nn.Module, rows: Tensor) -> Tensor:
            logits = model(rows) if material.forward is None else material.forward(model, rows)
            return logits / self.by

        shifted = None if material.shifted is None else flat(material.shifted)
        return Material(flat(material.queries), material.model, forward, shifted)


def default_controls() -> list[Control]:
    """Random-init, constant, permuted answers, temperature 4.

    Example:
        >>> from legibility.scores import default_controls
        >>> [control.name for control in default_controls()]
        ['random-init', 'constant', 'permuted answers', 'temperature 4']
    """
    return [RandomInit(), ConstantModel(), PermutedAnswers(), Temperature()]
