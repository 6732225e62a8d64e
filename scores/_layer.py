"""A layer inside a model: what it says to all inputs, and what the rest of the model makes of other activations there."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from legibility.scores._asking import BATCH, Forward, call
from legibility.scores._divergence import Rest
from legibility.scores.weights._canonical import canonicalise

_READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Value = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """The activations of one layer, what follows from them, and which concepts each position shows.

    Attributes:
        activations: `(N, ..., units)`, floating point, as many positions as there are labels or, without, masks.
        rest: the model from this layer to its logits; None if it can't be asked.
        concepts: integers >= 0, a value of each concept for every position, `(N, ..., concepts)`; None if unknown.
        mask: bool `(N, ...)`, the positions that count; None means all.
        name: of the module whose output it is; None for what the last linear layer reads.

    Example:
        >>> import torch
        >>> from legibility.scores import Layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> inputs = torch.randn(64, 4)
        >>> layer = Layer.of(model, inputs)
        >>> layer.activations.shape, bool((layer.rest(layer.activations) - model(inputs)).abs().max() < 1e-5)
        (torch.Size([64, 8]), True)
    """

    activations: Tensor
    rest: Rest | None = None
    concepts: Tensor | None = None
    mask: Tensor | None = None
    name: str | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tensor,
        concepts: Tensor | None = None,
        *,
        name: str | None = None,
        forward: Forward | None = None,
        mask: Tensor | None = None,
    ) -> "Layer":
        """Records a layer of the canonical model (see `canonicalise`), so that rescaling its units changes nothing.

        Args:
            model: any module; it isn't changed.
            inputs: `(N, ...)`, on its device.
            concepts: their values, `(N, ..., concepts)`.
            name: of a module; its output is the layer (the first floating-point tensor of several). None: what the last
                linear or convolutional layer that is called reads.
            forward: `(model, rows of the inputs) -> logits`; None calls the model.
            mask: bool, the positions that count, `(N,)` or `(N, T)`.

        Returns:
            the layer. Dimensions of it that `concepts` (or, without, `mask`) doesn't have are flattened into units.

        Raises:
            ValueError: for a name that the model doesn't have or doesn't call just once, or whose output isn't
                floating-point; without a name, for a model that calls no linear or convolutional layer.
        """
        twin = canonicalise(model).model.eval().requires_grad_(False)
        place = _Place(twin, inputs, call if forward is None else forward, name)
        said = place.record()
        positions = 1 if concepts is None else concepts.ndim - 1
        if concepts is None and mask is not None and said.shape[:2] == mask.shape:
            positions = mask.ndim
        if mask is not None and mask.ndim > positions:
            mask = mask.flatten(1).any(-1)
        if mask is not None and mask.ndim < positions:
            mask = mask.unsqueeze(-1).expand(said.shape[:positions])
        return cls(said.flatten(positions), place, concepts, mask, name)

    def again(self, model: nn.Module, forward: Forward | None) -> "Layer | None":
        """The same layer of another model; None if this one was given by hand."""
        if not isinstance(self.rest, _Place):
            return None
        return Layer.of(model, self.rest.inputs, self.concepts, name=self.name, forward=forward, mask=self.mask)

    def flatter(self, by: float) -> "Layer":
        """The layer of a model whose logits are divided."""
        rest = self.rest
        if rest is None:
            return self
        if isinstance(rest, _Place):
            ask = rest.forward
            return replace(self, rest=rest.asked(lambda model, rows: ask(model, rows) / by))
        return replace(self, rest=lambda activations: rest(activations) / by)

    def dealt(self, order: Tensor) -> "Layer":
        """The layer with the concepts' values given to other examples."""
        if self.concepts is None:
            return self
        mask = None if self.mask is None else self.mask & self.mask[order]
        return replace(self, concepts=self.concepts[order], mask=mask)


class _Place:
    """A place in a model: what is said there, and the answers when something else is said.

    It puts the same inputs as before beneath the activations, for other paths may lead past the layer; activations must
    therefore come for all examples at once, in order.
    """

    everything_at_once = True

    def __init__(self, model: nn.Module, inputs: Tensor, forward: Forward, name: str | None) -> None:
        self.model, self.inputs, self.forward, self.name = model, inputs, forward, name
        self.module = self._found(name)
        self.shape: torch.Size = torch.Size()

    def _found(self, name: str | None) -> nn.Module:
        modules = dict(self.model.named_modules())
        if name is not None:
            if name not in modules or not name:
                near = [known for known in modules if known][:8]
                raise ValueError(f"`layer` must name a module of the model, got {name!r}; it has {', '.join(near)}.")
            found: nn.Module = modules[name]
            return found
        called: list[nn.Module] = []
        with contextlib.ExitStack() as stack, torch.no_grad():
            for module in modules.values():
                if isinstance(module, _READERS):
                    handle = module.register_forward_pre_hook(lambda one, _: called.append(one))
                    stack.callback(handle.remove)
            self.forward(self.model, self.inputs[:2])
        if not called:
            raise ValueError("`layer` must be named: the model calls no linear layer whose input could be taken.")
        return called[-1]

    def asked(self, forward: Forward) -> "_Place":
        """The same place, its model asked in another way."""
        other = copy.copy(self)
        other.forward = forward
        return other

    def record(self) -> Tensor:
        """What is said there to all inputs."""
        said: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            said.append(value.detach())
            return value

        with torch.no_grad():
            for rows in torch.split(self.inputs, BATCH):
                before = len(said)
                with self._put(keep):
                    self.forward(self.model, rows)
                if len(said) != before + 1:
                    raise ValueError(
                        f"`layer` must name a module that is called once per call of the model, {self.name!r} was "
                        f"called {len(said) - before} times."
                    )
        found = torch.cat(said)
        self.shape = found.shape[1:]
        return found

    def __call__(self, activations: Tensor) -> Tensor:
        if len(activations) != len(self.inputs):
            raise ValueError(f"`activations` must hold all {len(self.inputs)} examples, got {len(activations)}.")
        found = []
        for rows, part in zip(torch.split(self.inputs, BATCH), torch.split(activations, BATCH), strict=True):
            changed = part.view(len(part), *self.shape)
            with self._put(lambda real, changed=changed: changed.to(real)):  # type: ignore[misc]
                found.append(self.forward(self.model, rows))
        return torch.cat(found)

    @contextlib.contextmanager
    def _put(self, value: Value) -> Iterator[None]:
        if self.name is None:
            handle = self.module.register_forward_pre_hook(lambda _, args: (value(args[0]), *args[1:]))
        else:
            handle = self.module.register_forward_hook(lambda _, __, output: _with_value(output, value))
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it reads layers' weights without calling them
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
            handle.remove()


def _with_value(output: Any, value: Value) -> Any:
    """A module's output with its first floating-point tensor replaced."""
    if isinstance(output, Tensor):
        return value(output)
    if isinstance(output, (tuple, list)):
        first = next(
            (i for i, part in enumerate(output) if isinstance(part, Tensor) and part.is_floating_point()), None
        )
        if first is not None:
            parts = [value(part) if i == first else part for i, part in enumerate(output)]
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, Mapping):
        name = next((k for k, part in output.items() if isinstance(part, Tensor) and part.is_floating_point()), None)
        if name is not None:
            changed: Any = copy.copy(output)
            changed[name] = value(output[name])
            return changed
    raise ValueError(f"`layer` must name a module that returns a floating-point tensor, got {type(output).__name__}.")
