"""What scores are taken of: a model, its answers, and what is known about the task; and models that mustn't win."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from legibility.scores._asking import Forward, answers, call, named_inputs
from legibility.scores._layer import Layer
from legibility.scores._untrained import untrained
from legibility.scores.imitation._queries import Queries
from legibility.scores.imitation._saving import regression_queries

Need = Literal["model", "labels", "shifted", "layer", "concepts", "classes"]


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that a score may ask for.

    Attributes:
        queries: the primary's answers, with true labels where they are known.
        model: the primary; None if only its answers are at hand.
        forward: `(model, rows of the inputs) -> logits`; None calls the model.
        shifted: its answers on data from another distribution, with labels.
        layer: a layer inside of it, with the concepts that its positions show, for scores of concepts and layers.
        targets: the true values, if the model answers with numbers: then `queries` hold bins of its answers, see
            `regression_queries`.

    Example:
        >>> import torch
        >>> from legibility.scores import Material
        >>> model, inputs = torch.nn.Linear(4, 3), torch.randn(64, 4)
        >>> material = Material.ask(model, inputs)
        >>> material.has("model"), material.has("labels")
        (True, False)
        >>> signs = (inputs > 0).long()
        >>> Material.ask(model, inputs, concepts=signs).has("concepts")
        True
    """

    queries: Queries
    model: nn.Module | None = None
    forward: Forward | None = None
    shifted: Queries | None = None
    layer: Layer | None = None
    targets: Tensor | None = None

    @classmethod
    def ask(
        cls,
        model: nn.Module,
        inputs: Tensor | Mapping[str, Tensor],
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        forward: Forward | None = None,
        concepts: Tensor | None = None,
        layer: str | None = None,
    ) -> "Material":
        """Puts the inputs to the model, in evaluation mode.

        Args:
            model: the primary; it is left in the mode it was in. It may return a tensor, a tuple, or a mapping or object
                with `logits`, as models of Hugging Face do.
            inputs: `(N, ...)`, on its device; or by name, one tensor or `input_ids` with `attention_mask`: then the
                model is called by keyword and padding doesn't count.
            labels: true classes, shaped like the logits without classes; where they are negative (PyTorch's
                `ignore_index`) nothing counts. Floating-point values shaped like the output make it a regression.
            mask: bool, the positions that count.
            forward: `(model, rows) -> logits`; None calls the model.
            concepts: integers >= 0, the value of each concept, `(N, concepts)` or `(N, T, concepts)`.
            layer: the module whose output scores of layers look at; None: with `concepts` what the last linear layer
                reads, else no layer.

        Returns:
            the material.

        Raises:
            TypeError: if the model returns nothing that could be logits.
            ValueError: for shapes that don't fit, inputs by name that aren't clear, a layer that the model doesn't have,
                or `concepts` or `layer` of a regression.
        """
        if isinstance(inputs, Mapping):
            inputs, padded, by_name = named_inputs(inputs)
            forward = by_name if forward is None else forward
            mask = padded if padded is None or mask is None else _both(mask, padded)
        logits = answers(model, inputs, forward)
        if labels is not None and labels.is_floating_point():
            _check_regression(concepts, layer)
            return cls(_binned(inputs, logits, labels, mask), model, forward, targets=labels)
        if labels is not None and bool((labels < 0).any()):
            known = labels >= 0
            mask, labels = known if mask is None else _both(known, mask), labels.clamp(min=0)
        queries = Queries(inputs, logits, labels, mask)
        inside = None
        if concepts is not None or layer is not None:
            inside = Layer.of(model, inputs, concepts, name=layer, forward=forward, mask=mask)
        return cls(queries, model, forward, layer=inside)

    def has(self, need: Need) -> bool:
        """Whether that is at hand."""
        return {
            "model": self.model is not None,
            "labels": self.queries.labels is not None,
            "shifted": self.shifted is not None and self.shifted.labels is not None,
            "layer": self.layer is not None,
            "concepts": self.layer is not None and self.layer.concepts is not None,
            "classes": self.targets is None,
        }[need]

    def of(self, model: nn.Module, forward: Forward | None = None) -> "Material":
        """The same questions put to another model."""
        forward = self.forward if forward is None else forward

        def asked(queries: Queries) -> Queries:
            found = answers(model, queries.inputs, forward)
            if self.targets is not None:
                return _binned(queries.inputs, found, self.targets, queries.mask)
            return replace(queries, logits=found, taps={})

        shifted = None if self.shifted is None else asked(self.shifted)
        layer = None if self.layer is None else self.layer.again(model, forward)
        return Material(asked(self.queries), model, forward, shifted, layer, self.targets)


def _binned(inputs: Tensor, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> Queries:
    if outputs.shape == (*targets.shape, 1):
        outputs = outputs.squeeze(-1)
    return regression_queries(inputs, outputs, targets.to(outputs), mask=mask)


def _check_regression(concepts: Tensor | None, layer: str | None) -> None:
    if concepts is not None or layer is not None:
        raise ValueError("`concepts` and `layer` must be None for a regression: these scores need a distribution.")


def _both(first: Tensor, second: Tensor) -> Tensor:
    """Where both masks are True; one may lack the positions of a sequence."""
    if first.ndim < second.ndim:
        first = first.unsqueeze(-1)
    if second.ndim < first.ndim:
        second = second.unsqueeze(-1)
    return first & second


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
            constant = replace(queries, logits=mean.expand_as(queries.logits).clone(), taps={})
            return Material(constant, targets=material.targets)
        twin = copy.deepcopy(material.model)
        with torch.no_grad():
            for parameter in twin.parameters():
                if parameter.ndim > 1:
                    parameter.zero_()
        return material.of(twin)


@dataclass(frozen=True)
class PermutedAnswers(Control):
    """The answers dealt out anew among the inputs: a primary that learnt random labels by heart. The true labels stay.

    The labels of concepts are dealt out anew as well; the layer, and what the rest of the model makes of it, stay.

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

        layer = material.layer
        if layer is not None:
            order = torch.randperm(len(layer.activations), generator=torch.Generator().manual_seed(self.seed))
            layer = layer.dealt(order) if layer.concepts is not None else None
        shifted = None if material.shifted is None else dealt(material.shifted)
        return Material(dealt(material.queries), shifted=shifted, layer=layer, targets=material.targets)


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
        if material.targets is not None:
            return "a regression has no temperature"

        def flat(queries: Queries) -> Queries:
            return replace(queries, logits=queries.logits / self.by)

        def forward(model: nn.Module, rows: Tensor) -> Tensor:
            return (call if material.forward is None else material.forward)(model, rows) / self.by

        shifted = None if material.shifted is None else flat(material.shifted)
        layer = None if material.layer is None else material.layer.flatter(self.by)
        return Material(flat(material.queries), material.model, forward, shifted, layer)


def default_controls() -> list[Control]:
    """Random-init, constant, permuted answers, temperature 4.

    Example:
        >>> from legibility.scores import default_controls
        >>> [control.name for control in default_controls()]
        ['random-init', 'constant', 'permuted answers', 'temperature 4']
    """
    return [RandomInit(), ConstantModel(), PermutedAnswers(), Temperature()]
