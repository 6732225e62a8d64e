"""Finds the neurons of a network: which layer reads what another layer computes, and nothing else does."""

import dis
import inspect
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn import functional

from legibility.lightning_plugins.foundation._names import plain_name, unwrapped
from legibility.lightning_plugins.sparsity._source import Source, framework_methods
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
_MOST_PATHS = 16  # through one forward, for each combination of mode and absent arguments


def neurons(root: nn.Module) -> Found:
    """The neurons of every Linear or convolution layer whose output one other such layer reads, and nothing else.

    The way from one to the other is read off ``forward`` by ``torch.fx``: in training and in evaluation mode, on both sides
    of every ``if`` that asks for values, with and without the arguments that may be ``None``. All must agree. On the way
    there may be activations, dropout, pooling, flattening and batch or instance norms (which treat each unit by itself;
    a batch norm behind a Linear layer is taken to see (batch, units)). The two feed-forward layers inside of
    ``torch``'s transformer layers are known.

    Code that can't be traced, and what else Lightning calls (``training_step``), is read as text: modules it calls whole are
    traced by themselves. A layer that it calls by itself, reads the weight of, or walks to in a ``Sequential`` is left out, and
    so is one with a hook. What no code of the model shows stays unknown: layers that
    others call from outside.

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
    calls = _Calls(tensors)
    calls.enter("")
    calls.enter_the_rest()
    ways: dict[str, list[_Way]] = {}
    for path, module in tensors.modules.items():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            ways |= _feed_forward(path, module, tensors)
    for graph in calls.graphs:
        for path, way in graph.ways.items():
            ways.setdefault(path, []).append(way)
    for path, several in ways.items():
        reason = next((way.reason for way in several if way.reason is not None), None)
        reason = reason or next(filter(None, (calls.why_not(part, several[0]) for part in several[0].parts)), None)
        reason = reason or calls.untraced_reader(tensors.piece(path, "weight", 0).count)
        if reason is None and len({(way.reader, way.outer, way.inner, *way.parts) for way in several}) > 1:
            reason = f"is read by {' or '.join(dict.fromkeys(way.reader for way in several))}, as the case may be"
        if reason is not None:
            found.left_out[path] = reason
        else:
            _take(found, tensors, several)
    for path, module in tensors.modules.items():
        if isinstance(module, _LINEAR) and path not in ways:
            found.left_out[path] = calls.outside(path) or "what reads its output could not be found"
    return found


class _Tracer(Tracer):
    """Takes ``torch``'s own layers as they are, also where a wrapper (FSDP) gave them a class of its own.

    An ``if`` that asks for values goes as ``decisions`` say, and beyond them to the other side.
    """

    def __init__(self, decisions: list[bool]) -> None:
        super().__init__()
        self.decisions = list(decisions)
        self.asked = 0

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)

    def to_bool(self, obj: Proxy) -> bool:
        self.asked += 1
        if self.asked > len(self.decisions):
            self.decisions.append(False)
        return self.decisions[self.asked - 1]


def _is_leaf(module: nn.Module) -> bool:
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules.")]
    return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and kinds[0] is not nn.Module


def _traced(module: nn.Module) -> list[Graph]:
    """One graph for each way that the code can take; none where it can't be run with symbols in place of tensors."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    absent = {one.name: None for one in arguments if one.default is None}
    graphs: list[Graph] = []
    modes = {one.training for one in module.modules()}
    for training in (True, False, None) if len(modes) > 1 else (True, False):
        for given in (None, absent) if absent else (None,):
            paths = _paths(module, training, given)
            if not paths:
                return []
            graphs += paths
    return graphs


def _paths(module: nn.Module, training: bool | None, given: dict[str, None] | None) -> list[Graph]:
    graphs: list[Graph] = []
    todo: list[list[bool]] = [[]]
    for _ in range(_MOST_PATHS):
        decisions = todo.pop()
        tracer = _Tracer(decisions)
        # Tracing runs the user's code: on a copy without weights of its own, so that nothing it sets stays.
        shell = _shell(module, {})
        for one in shell.modules() if training is not None else ():
            one.training = bool(training)
        try:
            with torch.random.fork_rng(devices=[]):
                graphs.append(tracer.trace(shell, given))
        except Exception as error:  # noqa: BLE001 - there is no telling what that code raises
            if not tracer.asked or not _refuses(error):
                return []
        todo += [[*tracer.decisions[:k], True] for k in range(len(decisions), tracer.asked)]
        if not todo:
            return graphs
    return []


def _refuses(error: BaseException) -> bool:
    """Whether the user's own code raised it (a check of the inputs): then nothing comes of that way."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


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


class _Calls:
    """All graphs of a model, and what the code that has none calls."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.modules = {path: unwrapped(module) for path, module in tensors.modules.items()}
        self.paths = {module: path for path, module in self.modules.items()}
        self.graphs: list[_Read] = []
        self.source = Source()
        self._forward = Source()  # what runs in a trace: its methods need not be read as text
        self._entered: set[str] = set()
        for module in self.paths:
            if "forward" in vars(module):
                self.source.lost[module] = "the forward that was put onto it"

    def enter(self, path: str) -> None:
        """Reads a module that is called whole."""
        module = self.modules[path]
        if path in self._entered or not any(isinstance(child, _LINEAR) for child in module.modules()):
            return
        if _is_leaf(module) or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return
        self._entered.add(path)
        graphs = _traced(module)
        self.graphs += [_Read(graph, path, self.tensors) for graph in graphs]
        (self._forward if graphs else self.source).method(module, "forward")
        self._enter_called()

    def _enter_called(self) -> None:
        for module in list(self.source.called):
            if module in self.paths:
                self.enter(self.paths[module])

    def enter_the_rest(self) -> None:
        """What Lightning calls, and then what nothing calls: it is taken to be called whole."""
        steps, others = Source(), Source()
        for module in self.modules.values():
            for name in framework_methods(module):
                if (module, name) not in self._forward.seen:
                    (steps if name.endswith("_step") else others).method(module, name)
        # A loss on weights computes no output; other hooks hand modules to loggers and the like.
        self.source.called = others.called | steps.called | self.source.called
        self.source.lost = steps.lost | self.source.lost
        self._enter_called()
        known = (self._entered - {""}) | self._traced()
        for path in self.modules:
            if not any(_within(path, other) or _within(other, path) for other in known):
                self.enter(path)
                known |= self._entered - {""}

    def _traced(self) -> set[str]:
        return {path for graph in self.graphs for path in graph.calls}

    def untraced_reader(self, count: int) -> str | None:
        """A layer that traced code calls in a case no trace came to, and that fits so many units."""
        traced = self._traced()
        for module in self._forward.called:
            path = self.paths.get(module, "")
            if path and not any(_within(other, path) for other in traced):
                layers = [layer for layer in module.modules() if isinstance(layer, _LINEAR)]
                if any(layer.weight.shape[1] % count == 0 for layer in layers):
                    return f"may be read by {path}, which {self._forward.called[module]} calls where no trace came to"
        return None

    def outside(self, path: str) -> str | None:
        """Where the text lets go of a layer, if it does."""
        module = self.modules[path]
        for owner, where in self.source.lost.items():
            if owner in self.paths and _within(path, self.paths[owner]):
                return f"may be used by {where}, which can't be followed"
        if module in self.source.called:
            return f"is called by {self.source.called[module]}, which can't be traced"
        if module in self.source.read:
            return f"is read as a tensor by {self.source.read[module]}"
        return None

    def why_not(self, path: str, way: "_Way") -> str | None:
        """Why a module on the way may be used otherwise."""
        who = "" if path == way.path else f"{path}, which its output goes to, "
        reason = self.outside(path)
        if reason is None and any(_hooked(self.modules[one]) for one in (path, *way.passed)):
            reason = "has a hook or a forward put onto it, or what it passes has"
        for graph in self.graphs:
            if reason is None and path in graph.reads:
                reason = "is read as a tensor as well"
            if reason is None and path in graph.calls and way.path not in graph.ways:
                reason = "is called without it as well"
        return reason and who + reason


def _within(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(other + ".")


def _hooked(module: nn.Module) -> bool:
    """Whether something not of ``torch`` or ours acts when a module is called."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    places = [str(getattr(hook, "__module__", "")).partition(".")[0] for hook in hooks]
    return "forward" in vars(module) or not all(place in ("torch", "legibility") for place in places)


class _Read:
    """The ways from layer to layer in one graph."""

    def __init__(self, graph: Graph, prefix: str, tensors: Tensors) -> None:
        def path_of(node: Node) -> str:
            return plain_name(f"{prefix}.{node.target}" if prefix else str(node.target))

        self.calls = Counter(path_of(node) for node in graph.nodes if node.op == "call_module")
        self.reads = {path_of(node).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        self.ways: dict[str, _Way] = {}
        for node in graph.nodes:
            path = path_of(node)
            if node.op != "call_module" or not isinstance(tensors.modules.get(path), _LINEAR):
                continue
            way = self.ways[path] = _Way(path, tensors, path_of)
            way.reason = _why_not(tensors, path) or ("is called more than once" if self.calls[path] > 1 else None)
            way.reason = way.reason or way.follow(node)
            twice = [part for part in way.parts if self.calls[part] > 1]
            if way.reason is None and twice:
                way.reason = f"{twice[0]}, which reads it, is called more than once"


class _Way:
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
                if isinstance(module, _LINEAR):
                    reason = _why_not(self.tensors, self.path_of(user))
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
        pixels = self.layer.weight.ndim - 2 if self.spatial and not self.flat else 0
        if isinstance(where, slice):
            return (
                where.stop is None and where.step is None and isinstance(where.start, int) and self._beside(where.start)
            )
        return isinstance(where, int) and (where == 0 or 2 <= where < 2 + pixels or -pixels <= where < 0)

    def _pass(self, path: str, module: Any) -> str | None:
        self.passed.append(path)
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


def _feed_forward(path: str, module: Any, tensors: Tensors) -> dict[str, list[_Way]]:
    """The way inside of ``torch``'s own transformer layer."""
    known = nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    first, second = (f"{path}.{name}" if path else name for name in ("linear1", "linear2"))
    way = _Way(first, tensors)
    way.reader, way.parts, way.passed = second, [first, second], [first, second]
    way.still = module.activation in (functional.relu, functional.gelu) or isinstance(module.activation, _STILL)
    reason = _why_not(tensors, second)
    way.reason = _why_not(tensors, first) or (reason and f"{second}, which reads it, {reason}")
    if any(getattr(type(module), name) is not getattr(known, name) for name in ("forward", "_ff_block")):
        way.reason = f"is in a {type(module).__name__}, which has a forward of its own"
    return {first: [way]}


def _take(found: Found, tensors: Tensors, several: list[_Way]) -> None:
    way = several[0]
    rows = tensors.with_bias(way.path, "weight", "bias")
    columns = tensors.piece(way.reader, "weight", 1, way.outer, way.inner)
    found.append(Units(way.path, rows, (columns,), tuple(way.between), all(one.still for one in several)))


def _why_not(tensors: Tensors, path: str) -> str | None:
    layer = tensors.modules[path]
    if not any(type(layer).forward is kind.forward for kind in _LINEAR):
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
