"""The layers of a model that are worth a look, what they say, and what reads the last of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._names import plain_name
from legibility.lightning_plugins.foundation._trees import is_floating, leaves_in
from legibility.scores import Material

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_BENDS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.Softsign),
)
_MOST = 24  # layers that are looked at; of more, evenly spread ones


@dataclass(frozen=True)
class Layers:
    """Which modules stand for the model's depth.

    Attributes:
        names: Of modules inside the primary, from early to late.
        blocks: Whether they are blocks of one list: candidates for a residual stream.
        found: How they were chosen, for the reader.
    """

    names: list[str]
    blocks: bool
    found: str


def layers_of(model: nn.Module, taps: Sequence[str] = ()) -> Layers:
    """The layers to look at: the user's taps; else the blocks of the largest list of blocks; else the activations.

    Args:
        model: The primary.
        taps: Names of its modules that the user chose.

    Returns:
        The layers; none where the model has neither.

    Example:
        >>> layers_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))).names
        ['1']
    """
    modules = dict(model.named_modules())
    lists = {
        name: [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        for name, module in modules.items()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and _is_of_blocks(module)
    }
    if lists:
        largest = max(lists, key=lambda name: sum(p.numel() for p in modules[name].parameters()))
        names = [name for name in lists[largest] if any(True for _ in modules[name].parameters())]
        return Layers(_spread(names), True, f"the blocks of {largest or 'the model'}")
    if taps:
        return Layers(_spread(list(taps)), False, "the taps")
    bends = [name for name, module in modules.items() if isinstance(module, _BENDS)]
    if bends:
        return Layers(_spread(bends), False, "the outputs of its nonlinearities")
    linear = [name for name, module in modules.items() if isinstance(module, _LINEAR)]
    return Layers(_spread(linear[:-1]), False, "the outputs of its linear layers, before any function between them")


def _is_of_blocks(module: nn.Module) -> bool:
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    return len(children) >= 2 and all(any(True for _ in child.children()) for child in children)


def _spread(names: list[str]) -> list[str]:
    if len(names) <= _MOST:
        return names
    return [names[round(place * (len(names) - 1) / (_MOST - 1))] for place in range(_MOST)]


def activations(material: Material, names: Sequence[str], rows: Tensor) -> dict[str, Tensor]:
    """What layers say to some of the examples, float32: `(n, units)`, `(n, T, units)`, of images `(n, H W, channels)`.

    Args:
        material: A model that is asked by number.
        names: Of its modules. One that isn't called, or gives no floating-point tensor, is left out.
        rows: Numbers of the examples.

    Returns:
        By name, in the order given.
    """
    assert material.model is not None
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            tensor = first_floating(result)
            if tensor is not None:
                found[name].append(_by_unit(tensor.detach().float()))

        return hook

    with _hooked({name: keep(name) for name in names}, material.model):
        for part in torch.split(rows, 256):
            asked(material, part)
    lengths = {name: sum(len(part) for part in parts) for name, parts in found.items()}
    return {name: torch.cat(parts) for name, parts in found.items() if parts and lengths[name] == len(rows)}


@torch.no_grad()
def asked(material: Material, rows: Tensor) -> Tensor:
    """The model's answers to some of the examples, in evaluation mode."""
    assert material.model is not None
    modes = {module: module.training for module in material.model.modules()}
    for module in modes:
        module.training = False
    try:
        if material.forward is None:
            found: Tensor = material.model(rows)
            return found
        return material.forward(material.model, rows)
    finally:
        for module, mode in modes.items():
            module.training = mode


def head_of(material: Material, layer: str) -> list[str]:
    """The modules that make the answers of a layer's output, one after the other with nothing in between.

    They are found by watching which module reads which tensor in one call, and hold only if together they give the
    model's answers.

    Returns:
        Their names; empty if there is no such chain (the layer's output is also read elsewhere, is reshaped by a
        function, or the rest is no chain of modules).
    """
    assert material.model is not None
    reads: list[tuple[str, Tensor, Tensor]] = []
    start: list[Tensor] = []
    modules = {name: module for name, module in material.model.named_modules() if name}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            tensor = first_floating(result)
            if name == layer and tensor is not None:
                start.append(tensor)
            elif len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and tensor is not None:
                reads.append((name, args[0], tensor))

        return hook

    rows = material.queries.inputs[:8]
    handles = [m.register_forward_hook(watch(name), with_kwargs=True) for name, m in modules.items()]
    try:
        answers = asked(material, rows)
    finally:
        for handle in handles:
            handle.remove()
    if len(start) != 1:
        return []
    return _chain(start[0], reads, answers)


def _chain(read: Tensor, reads: list[tuple[str, Tensor, Tensor]], answers: Tensor) -> list[str]:
    # The outermost module comes last among the hooks, for it ends last; it is the shortest way.
    for name, given, result in reversed([one for one in reads if one[1] is read]):
        if result.numel() == answers.numel() and _proportional(result, answers):
            return [name]
        rest = _chain(result, [one for one in reads if one[2] is not result], answers) if result is not given else []
        if rest:
            return [name, *rest]
    return []


def _proportional(result: Tensor, answers: Tensor) -> bool:
    said = result.float().reshape(answers.shape)
    return bool(torch.allclose(said * factor(said, answers), answers, rtol=1e-3, atol=1e-4))


def factor(said: Tensor, answers: Tensor) -> float:
    """By what the head's words have to be multiplied to be the answers: a temperature's inverse."""
    square = float(said.double().square().sum())
    return float((said.double() * answers.double()).sum()) / square if square > 0 else 1.0


def through(model: nn.Module, chain: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """The modules of a chain as one function."""
    modules = dict(model.named_modules())

    def read(tensor: Tensor) -> Tensor:
        for name in chain:
            found = first_floating(modules[name](tensor))
            assert found is not None
            tensor = found
        return tensor.float()

    return read


def first_floating(result: Any) -> Tensor | None:
    """The first floating-point tensor of what a module returned."""
    if isinstance(result, Tensor):
        return result if result.is_floating_point() else None
    return next((leaf for _, leaf in leaves_in(result) if isinstance(leaf, Tensor) and is_floating(leaf)), None)


@contextmanager
def _hooked(hooks: Mapping[str, Callable[..., None]], model: nn.Module) -> Iterator[None]:
    modules = {plain_name(name): module for name, module in model.named_modules()}
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items() if name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_unit(tensor: Tensor) -> Tensor:
    """Units last: channels of images and their places, else as it is."""
    return tensor.flatten(2).transpose(1, 2) if tensor.ndim >= 4 else tensor
