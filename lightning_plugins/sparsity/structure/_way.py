"""The way of a layer's output to the one layer that reads it, in a graph."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn import functional

from legibility.lightning_plugins.foundation._names import plain_name
from legibility.lightning_plugins.sparsity.structure._units import Piece, Tensors

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_MIX = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
# What acts on each unit by itself; those of the first line make 0 of 0.
STILL = (
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


class Ways:
    """The ways from layer to layer in one graph."""

    def __init__(self, graph: Graph, prefix: str, tensors: Tensors) -> None:
        def path_of(node: Node) -> str:
            return plain_name(f"{prefix}.{node.target}" if prefix else str(node.target))

        self.calls = Counter(path_of(node) for node in graph.nodes if node.op == "call_module")
        self.reads = {path_of(node).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        self.ways: dict[str, Way] = {}
        for node in graph.nodes:
            path = path_of(node)
            if node.op != "call_module" or not isinstance(tensors.modules.get(path), LINEAR):
                continue
            way = self.ways[path] = Way(path, tensors, path_of)
            way.reason = why_not(tensors, path) or ("is called more than once" if self.calls[path] > 1 else None)
            way.reason = way.reason or way.follow(node)
            twice = [part for part in way.parts if self.calls[part] > 1]
            if way.reason is None and twice:
                way.reason = f"{twice[0]}, which reads it, is called more than once"


class Way:
    """Follows the output of a layer to the one that reads it.

    Attributes:
        parts: The layer, the norms behind it and its reader: what must do nothing else.
        passed: All modules on the way.
        reason: Why it leads nowhere; None if it leads to ``reader``.
    """

    def __init__(self, path: str, tensors: Tensors, path_of: Any = None) -> None:
        self.path, self.tensors, self.path_of = path, tensors, path_of
        self.layer: Any = tensors.modules[path]
        self.spatial = not isinstance(self.layer, nn.Linear)  # units stand in dimension 1, pixels behind
        self.flat = False
        self.between: list[Piece] = []
        self.parts, self.passed = [path], [path]
        self.still = True
        self.reader, self.outer, self.inner = "", 1, 1
        self.reason: str | None = None

    def follow(self, node: Node) -> str | None:
        self.count = self.tensors.piece(self.path, "weight", 0).count
        while True:
            users = [user for user in node.users if not _asks(user)]
            if len(users) != 1:
                return f"its output is used {len(users)} times ({', '.join(u.name for u in users)})"
            if any(self._tells_width(user) for user in node.users if _asks(user)):
                return "its number of units is read off its output's shape"
            (user,) = users
            if user.op == "output":
                return "its output is the model's"
            inputs = [other for other in user.all_input_nodes if not _asks(other)]
            if inputs != [node]:
                return f"its output meets others in {user.name} (a residual stream?)"
            if user.op == "call_module":
                module = self.tensors.modules[self.path_of(user)]
                if isinstance(module, LINEAR):
                    reason = why_not(self.tensors, self.path_of(user))
                    return f"{self.path_of(user)}, which reads it, {reason}" if reason else self._arrive(user)
                reason = self._pass(self.path_of(user), module)
            else:
                reason = self._through(user)
            if reason is not None:
                return reason
            node = user

    def _tells_width(self, asks: Node) -> bool:
        """Whether a shape is used where the number of units stands in it, or may stand."""
        if _attribute(asks) in ("dim", "ndim"):
            return False
        if len(asks.args) > 1 and asks.op == "call_method":
            return bool(asks.users) and not self._beside(asks.args[1])
        items = [user for user in asks.users if user.op == "call_function" and _name(user.target) == "getitem"]
        return len(items) < len(asks.users) or any(one.users and not self._beside(one.args[1]) for one in items)

    def _beside(self, where: Any) -> bool:
        """Whether an index into a shape can't be the units'; dimensions of a Linear layer's output are known from 0 only."""
        pixels = len(self.layer.kernel_size) if self.spatial and not self.flat else 0
        if isinstance(where, slice):
            return (
                where.stop is None and where.step is None and isinstance(where.start, int) and self._beside(where.start)
            )
        return isinstance(where, int) and (where == 0 or 2 <= where < 2 + pixels or -pixels <= where < 0)

    def _pass(self, path: str, module: Any) -> str | None:
        self.passed.append(path)
        if isinstance(module, STILL):
            return None
        if isinstance(module, _ALIVE):
            self.still = False
            return None
        if isinstance(module, _POOLS) and self.spatial and not self.flat:
            return None
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self.flat = True
            return None
        names = [name for name in ("weight", "bias", "running_mean", "running_var") if _has(module, name)]
        if isinstance(module, _NORMS) and not self.spatial and not (names and isinstance(module, _NORMS[0])):
            # Dimension 1 of (batch, tokens, units) may be as long as the units are many, and nothing would tell.
            return f"its output passes {path} ({type(module).__name__}), which may norm along another dimension"
        if isinstance(module, _NORMS) and module.num_features == self.count and not self.flat:
            self.still = False
            self.parts.append(path)
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
        self.parts.append(path)
        self.passed.append(path)
        self.outer, self.inner = (1, width // self.count) if self.spatial else (width // self.count, 1)
        return None


def why_not(tensors: Tensors, path: str) -> str | None:
    """Why a layer's weight and bias can't be taken for its neurons'; None if they can."""
    layer = tensors.modules[path]
    if not any(type(layer).forward is kind.forward for kind in LINEAR):
        return f"has a forward of its own ({type(layer).__name__})"
    return tensors.why_not(layer, ["weight", "bias"] if _has(layer, "bias") else ["weight"])


def _asks(node: Node) -> bool:
    """Whether a node asks for a shape, not for values."""
    if _attribute(node) is not None:
        return _attribute(node) in _ASKS
    return node.op == "call_function" and _name(node.target) == "getitem" and _asks(node.all_input_nodes[0])


def _attribute(node: Node) -> Any:
    """The name of the method that is called, or of the attribute that is read."""
    if node.op == "call_method":
        return node.target
    return node.args[1] if node.op == "call_function" and _name(node.target) == "getattr" else None


def _name(function: Any) -> str:
    """A function's name, if it is Python's or ``torch``'s."""
    name = getattr(function, "__name__", "")
    known = [getattr(place, name, None) for place in (torch, functional, torch._C._nn)]
    if any(function is other for other in known) or function.__module__ in ("builtins", "_operator"):
        return str(name)
    return ""


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None
