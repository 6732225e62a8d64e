"""Which layers of a model follow one another with nothing else in between: where rescaling can't change the function."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

Kind = Literal["linear", "homogeneous", "elementwise", "pool", "flatten", "batch norm", "gain", "other"]

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# act(s x) = s act(x) for s > 0, unit by unit.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.Softplus,
    nn.Mish,
    nn.Hardswish,
)
_ELEMENTWISE += (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
)
_POOLS += (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOLS += (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GAINS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)
_FUNCTIONS: dict[Any, Kind] = {
    torch.relu: "homogeneous",
    functional.relu: "homogeneous",
    functional.leaky_relu: "homogeneous",
    functional.dropout: "homogeneous",
    torch.tanh: "elementwise",
    torch.sigmoid: "elementwise",
    functional.gelu: "elementwise",
    functional.silu: "elementwise",
    functional.elu: "elementwise",
    functional.softplus: "elementwise",
    functional.max_pool1d: "pool",
    functional.max_pool2d: "pool",
    functional.avg_pool1d: "pool",
    functional.avg_pool2d: "pool",
    functional.adaptive_avg_pool1d: "pool",
    functional.adaptive_avg_pool2d: "pool",
}
_METHODS: dict[str, Kind] = {"relu": "homogeneous", "tanh": "elementwise", "sigmoid": "elementwise"}
_LOOKS = ("size", "dim")  # methods that only look at a shape


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a chain.

    Attributes:
        kind: what it does to a unit.
        name: the module's name, or the operation's.
        module: the module; None for a function.
        apply: what it does to a tensor, for "elementwise" and "homogeneous".
    """

    kind: Kind
    name: str
    module: nn.Module | None = None
    apply: Callable[[Tensor], Tensor] | None = None


def chains(model: nn.Module) -> tuple[list[list[Step]], str]:
    """Runs of operations in which each reads only the one before, and is read only by the one after.

    They are read off the traced graph (`torch.fx`). Where Python decides what is called, that fails: then every
    `nn.Sequential` is taken for a chain of its own.

    Args:
        model: any module.

    Returns:
        the chains, and how they were found.
    """
    usable = _unshared(model)
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # noqa: BLE001 - whatever the model's own code raises when it meets a symbolic tensor
        return list(_sequentials(model, usable)), "nn.Sequential, for the model can't be traced"
    return list(_runs(graph, dict(model.named_modules()), usable)), "traced"


def step_of(name: str, module: nn.Module, usable: frozenset[nn.Module]) -> Step:
    """What a module is in a chain."""
    if module not in usable:
        return Step("other", name, module)
    if isinstance(module, LINEAR) and type(module).forward in (nn.Linear.forward, *(t.forward for t in LINEAR[1:])):
        return Step("linear" if getattr(module, "groups", 1) == 1 else "other", name, module)
    kinds: list[tuple[Kind, tuple[type[nn.Module], ...]]] = [
        ("homogeneous", _HOMOGENEOUS),
        ("elementwise", _ELEMENTWISE),
        ("pool", _POOLS),
    ]
    for kind, types in kinds:
        if type(module) in types:
            return Step(kind, name, module, None if kind == "pool" else _evaluated(module))
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return Step("flatten", name, module)
    if type(module) in _BATCH_NORMS and module.track_running_stats:
        return Step("batch norm", name, module)
    if type(module) in _GAINS and module.weight is not None:
        return Step("gain", name, module)
    return Step("other", name, module)


def _evaluated(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return lambda tensor: tensor
    return lambda tensor: module(tensor.clone())  # some work in place


def _unshared(model: nn.Module) -> frozenset[nn.Module]:
    """Modules of one name, whose parameters are their own and plain: only they may be rescaled."""
    named = [module for _, module in model.named_modules(remove_duplicate=False)]
    names = Counter(named)
    owners = Counter(id(p) for module in named for p in module.parameters(recurse=False))
    return frozenset(
        module
        for module in names
        if names[module] == 1
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
        and not parametrize.is_parametrized(module)
    )


def _sequentials(model: nn.Module, usable: frozenset[nn.Module]) -> Iterator[list[Step]]:
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if type(module) is nn.Sequential and module not in inside:
            inside |= {child for child in module.modules() if type(child) is nn.Sequential}
            yield list(_flat(name, module, usable))


def _flat(name: str, sequential: nn.Sequential, usable: frozenset[nn.Module]) -> Iterator[Step]:
    for child_name, child in sequential.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if type(child) is nn.Sequential and sequential in usable and child in usable:
            yield from _flat(full, child, usable)
        else:
            yield step_of(full, child, usable)


def _runs(graph: fx.Graph, modules: dict[str, nn.Module], usable: frozenset[nn.Module]) -> Iterator[list[Step]]:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    nodes = [node for node in graph.nodes if not _only_looks(node)]
    followers = {node: [user for user in node.users if not _only_looks(user)] for node in nodes}
    sources = {node: [source for source in node.all_input_nodes if not _only_looks(source)] for node in nodes}

    def follows(node: fx.Node) -> fx.Node | None:
        after = followers[node]
        return after[0] if len(after) == 1 and sources[after[0]] == [node] and after[0].op != "output" else None

    started = {after for node in nodes if (after := follows(node)) is not None}
    for node in nodes:
        if node in started or node.op == "output":
            continue
        run, current = [], node
        while True:
            if current.op != "placeholder":
                run.append(_step_of_node(current, modules, usable, calls))
            after = follows(current)
            if after is None:
                break
            current = after
        yield run


def _only_looks(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return True
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        return all(_only_looks(source) for source in node.all_input_nodes)
    return node.op == "call_method" and node.target in _LOOKS


def _step_of_node(
    node: fx.Node, modules: dict[str, nn.Module], usable: frozenset[nn.Module], calls: Counter[str]
) -> Step:
    name = str(node.target)
    if node.op == "call_module":
        return step_of(name, modules[name], usable if calls[name] == 1 else frozenset())
    if node.op == "call_function" and node.target in _FUNCTIONS:
        kind = _FUNCTIONS[node.target]
        function: Any = node.target
        apply = None
        if node.target is functional.dropout:
            apply = _itself
        elif kind != "pool":
            apply = functools.partial(_call, function, tuple(node.args[1:]), dict(node.kwargs))
        return Step(kind, node.name, apply=apply)
    if node.op == "call_method" and name in _METHODS:
        return Step(_METHODS[name], node.name, apply=functools.partial(_call, getattr(torch, name), (), {}))
    if _flattens(node):
        return Step("flatten", node.name)
    return Step("other", node.name)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _call(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor) -> Tensor:
    return function(tensor.clone(), *args, **{k: v for k, v in kwargs.items() if k != "input"})


def _flattens(node: fx.Node) -> bool:
    rest = tuple(node.args[1:])
    if (node.op, node.target) in (("call_function", torch.flatten), ("call_method", "flatten")):
        start = node.kwargs.get("start_dim", rest[0] if rest else 0)
        return bool(start == 1) and len(rest) < 2 and "end_dim" not in node.kwargs
    # x.view(len(x), -1)
    return node.op == "call_method" and node.target in ("view", "reshape") and len(rest) == 2 and bool(rest[1] == -1)
