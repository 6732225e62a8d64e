"""Finds the neurons of a network: which layer reads what another layer computes, and nothing else does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn import functional

from legibility.lightning_plugins.foundation._names import plain_name, unwrapped
from legibility.lightning_plugins.sparsity._units import Found, Piece, Tensors, Units

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_MIX = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
# What acts on each unit by itself; those of the first line make 0 of 0.
_STILL = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh),
    *(nn.Softsign, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Identity, nn.modules.dropout._DropoutNd),
)
_ALIVE = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.Hardtanh, nn.Threshold)
_POOLS = (
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._LPPoolNd),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample),
)
_STILL_NAMES = (
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh"),
    *("softsign", "dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "clone"),
)
_ALIVE_NAMES = ("sigmoid", "hardsigmoid", "softplus", "logsigmoid")
_POOL_NAMES = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d"),
)
_ASKS = ("size", "dim", "shape", "ndim")


def neurons(root: nn.Module) -> Found:
    """The neurons of every Linear or convolution layer whose output one other such layer reads, and nothing else.

    The way from one to the other is read off ``forward`` by ``torch.fx``; a module that can't be traced is entered, and
    its children are read as their own ``forward`` says. On the way there may be activations, dropout, pooling, flattening
    and batch or instance norms (which treat each unit by itself). The two feed-forward layers inside of ``torch``'s transformer
    layers are known.

    Args:
        root: The module to search.

    Returns:
        Units: rows and biases in, columns out. ``left_out`` says which layers were not taken, and why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        >>> [(units.name, [piece.name for piece in units.pieces]) for units in neurons(net)]
        [('0', ['0.weight', '0.bias', '3.weight'])]
        >>> neurons(net).left_out
        {'3': "its output is the model's"}
    """
    tensors, found = Tensors(root), Found()
    for path, module in tensors.modules.items():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            first, second = (f"{path}.{name}" if path else name for name in ("linear1", "linear2"))
            still = module.activation in (functional.relu, functional.gelu) or isinstance(module.activation, _STILL)
            _take(found, tensors, first, second, outer=1, inner=1, between=(), still=still)
    for graph, prefix in _graphs(root, ""):
        _read(graph, prefix, tensors, found)
    for path, module in tensors.modules.items():
        if isinstance(module, _LINEAR) and path not in found.left_out and not any(u.name == path for u in found):
            found.left_out[path] = "what reads its output could not be found"
    return found


class _Tracer(Tracer):
    """Takes ``torch``'s own layers as they are, also where a wrapper (FSDP) gave them a class of its own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = [kind for kind in type(m).__mro__ if kind.__module__.startswith("torch.nn.modules.")]
        return not isinstance(m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and kinds[0] is not nn.Module


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[Graph, str]]:
    """The graph of a module, or of its children where it has none or does not call them."""
    module = unwrapped(module)
    if not any(isinstance(child, _LINEAR) for child in module.modules()):
        return
    called: set[str] = set()
    if not _Tracer().is_leaf_module(module, ""):
        graph = _traced(module)
        if graph is not None:
            called = {plain_name(str(node.target)) for node in graph.nodes if node.op == "call_module"}
            yield graph, prefix
    for name, child in module.named_children():
        if not any(path == plain_name(name) or path.startswith(plain_name(name) + ".") for path in called):
            yield from _graphs(child, plain_name(f"{prefix}.{name}" if prefix else name))


def _traced(module: nn.Module) -> Graph | None:
    """None where the module's code can't be run with symbols in place of tensors."""
    try:
        # Tracing runs the user's code: on a copy without weights of its own, so that nothing it sets stays.
        with torch.random.fork_rng(devices=[]):
            return _Tracer().trace(_shell(module, {}))
    except Exception:  # noqa: BLE001 - there is no telling what that code raises
        return None


def _shell(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    module = unwrapped(module)  # what a wrapper does around each call is not the model's
    if module not in known:
        shell = known[module] = object.__new__(type(module))  # parametrised modules refuse to be copied
        shell.__dict__ = dict(module.__dict__)
        for table in ("_parameters", "_buffers"):
            shell.__dict__[table] = dict(module.__dict__[table])
        children = module._modules.items()
        shell.__dict__["_modules"] = {n: None if c is None else _shell(c, known) for n, c in children}
    return known[module]


def _read(graph: Graph, prefix: str, tensors: Tensors, found: Found) -> None:
    def path_of(node: Node) -> str:
        return plain_name(f"{prefix}.{node.target}" if prefix else str(node.target))

    calls = [path_of(node) for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(tensors.modules.get(path_of(node)), _LINEAR):
            continue
        path = path_of(node)
        reason = _why_not(tensors, path) or ("is called more than once" if calls.count(path) > 1 else None)
        if reason is None:
            way = _Way(node, path, tensors, path_of)
            reason = way.follow()
            if reason is None and calls.count(way.reader) > 1:
                reason = f"{way.reader}, which reads it, is called more than once"
        if reason is not None:
            found.left_out[path] = reason
        else:
            _take(found, tensors, path, way.reader, way.outer, way.inner, tuple(way.between), way.still)


class _Way:
    """Follows the output of a layer to the one that reads it."""

    def __init__(self, node: Node, path: str, tensors: Tensors, path_of: Any) -> None:
        self.node, self.tensors, self.path_of = node, tensors, path_of
        self.layer: Any = tensors.modules[path]
        self.count = tensors.piece(path, "weight", 0).count
        self.spatial = not isinstance(self.layer, nn.Linear)  # units stand in dimension 1, pixels behind
        self.flat = False
        self.between: list[Piece] = []
        self.still = True
        self.reader, self.outer, self.inner = "", 1, 1

    def follow(self) -> str | None:
        """Why it leads nowhere; None if it leads to ``reader``."""
        node = self.node
        while True:
            users = [user for user in node.users if not _asks(user)]
            if len(users) != 1:
                return f"its output is used {len(users)} times ({', '.join(u.name for u in users)})"
            (user,) = users
            if user.op == "output":
                return "its output is the model's"
            inputs = [other for other in user.all_input_nodes if not _asks(other)]
            if inputs != [node]:
                return f"its output meets others in {user.name} (a residual stream?)"
            if user.op == "call_module":
                module = self.tensors.modules[self.path_of(user)]
                if isinstance(module, _LINEAR):
                    reason = _why_not(self.tensors, self.path_of(user))
                    return f"{self.path_of(user)}, which reads it, {reason}" if reason else self._arrive(user)
                reason = self._pass(self.path_of(user), module)
            else:
                reason = self._through(user)
            if reason is not None:
                return reason
            node = user

    def _pass(self, path: str, module: Any) -> str | None:
        if isinstance(module, _STILL):
            return None
        if isinstance(module, _ALIVE):
            self.still = False
            return None
        if isinstance(module, _POOLS) and self.spatial and not self.flat:
            return None
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self.flat = True
            return None
        if isinstance(module, _NORMS) and module.num_features == self.count and not self.flat:
            self.still = False
            names = [name for name in ("weight", "bias", "running_mean", "running_var") if _has(module, name)]
            self.between += [self.tensors.piece(path, name, 0) for name in names]
            return None
        if isinstance(module, _MIX):
            return f"its output passes {path} ({type(module).__name__}), which mixes the units"
        return f"its output is read by {path} ({type(module).__name__}), which is not known to treat units one by one"

    def _through(self, node: Node) -> str | None:
        name = node.target if node.op == "call_method" else _name(node.target)
        rest = list(node.args[1:])
        if name in _STILL_NAMES:
            return None
        if name in _ALIVE_NAMES:
            self.still = False
            return None
        if name in _POOL_NAMES and self.spatial and not self.flat:
            return None
        whole = name in ("view", "reshape") and len(rest) == 2 and isinstance(rest[0], Node) and rest[1] == -1
        if whole or (name == "flatten" and rest in ([1], [1, -1]) and not node.kwargs):
            self.flat = True
            return None
        if name == "flatten" and not rest and node.kwargs == {"start_dim": 1}:
            self.flat = True
            return None
        return f"its output passes {node.name}, which is not known to treat units one by one"

    def _arrive(self, node: Node) -> str | None:
        path = self.path_of(node)
        reader: Any = self.tensors.modules[path]
        if getattr(reader, "groups", 1) != 1 or getattr(self.layer, "groups", 1) != 1:
            return f"it or {path}, which reads it, is a grouped convolution"
        width = self.tensors.piece(path, "weight", 1).count
        alike = type(reader).forward is type(self.layer).forward
        if width % self.count or not (
            width == self.count and alike if not self.flat else isinstance(reader, nn.Linear)
        ):
            return f"{path} reads it along another dimension"
        self.reader = path
        self.outer, self.inner = (1, width // self.count) if self.spatial else (width // self.count, 1)
        return None


def _take(
    found: Found,
    tensors: Tensors,
    path: str,
    reader: str,
    outer: int,
    inner: int,
    between: tuple[Piece, ...],
    still: bool,
) -> None:
    reason = _why_not(tensors, reader)
    reason = _why_not(tensors, path) or (reason and f"{reader}, which reads it, {reason}")
    if reason is not None:
        found.left_out[path] = reason
        return
    rows = tensors.with_bias(path, "weight", "bias")
    found.append(Units(path, rows, (tensors.piece(reader, "weight", 1, outer, inner),), between, still))


def _why_not(tensors: Tensors, path: str) -> str | None:
    layer = tensors.modules[path]
    if not any(type(layer).forward is kind.forward for kind in _LINEAR):
        return f"has a forward of its own ({type(layer).__name__})"
    return tensors.why_not(layer, ["weight", "bias"] if _has(layer, "bias") else ["weight"])


def _asks(node: Node) -> bool:
    """Whether a node asks for a shape, not for values."""
    if node.op == "call_method":
        return node.target in _ASKS
    if node.op == "call_function" and _name(node.target) == "getattr":
        return node.args[1] in _ASKS
    return node.op == "call_function" and _name(node.target) == "getitem" and _asks(node.all_input_nodes[0])


def _name(function: Any) -> str:
    """A function's name, if it is Python's or ``torch``'s."""
    name = getattr(function, "__name__", "")
    known = [getattr(place, name, None) for place in (torch, functional, torch._C._nn)]
    if any(function is other for other in known) or function.__module__ in ("builtins", "_operator"):
        return str(name)
    return ""


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None
