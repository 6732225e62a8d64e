"""Finds the neurons of a network: which layer reads what another layer computes, and nothing else does."""

from typing import Any

from torch import nn
from torch.nn import functional

from legibility.lightning_plugins.foundation._names import unwrapped
from legibility.lightning_plugins.sparsity.structure._source import Source, framework_methods
from legibility.lightning_plugins.sparsity.structure._traces import is_leaf, traces
from legibility.lightning_plugins.sparsity.structure._units import Found, Tensors, Units
from legibility.lightning_plugins.sparsity.structure._way import LINEAR, STILL, Way, Ways, why_not


def neurons(root: nn.Module) -> Found:
    """The neurons of every Linear or convolution layer whose output one other such layer reads, and nothing else.

    The way from one to the other is read off ``forward`` by ``torch.fx``: in training and in evaluation mode, on both sides
    of every ``if`` that asks for values, with and without the arguments that may be ``None``. All must agree. On the way
    there may be activations, dropout, pooling, flattening and batch or instance norms (which treat each unit by itself;
    a batch norm behind a Linear layer is taken to see (batch, units)). The two feed-forward layers inside of
    ``torch``'s transformer layers are known.

    Code that can't be traced, and what else Lightning calls (``training_step``), is read as text: what it calls whole
    is traced by itself. A layer that it calls by itself or walks to in a ``Sequential`` is left out, and so is one whose
    weight is read as a tensor, whose width is asked for, or that has a hook. Unknown stays what no method of the model
    shows: that somebody else calls a layer.

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
    ways: dict[str, list[Way]] = {}
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
        if isinstance(module, LINEAR) and path not in ways:
            found.left_out[path] = calls.outside(path) or "what reads its output could not be found"
    return found


class _Calls:
    """All graphs of a model, and what the code that has none calls."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.modules = {path: unwrapped(module) for path, module in tensors.modules.items()}
        self.paths = {module: path for path, module in self.modules.items()}
        self.graphs: list[Ways] = []
        self.source = Source()
        self._forward = Source()  # what runs in a trace: its methods need not be read as text
        self._entered: set[str] = set()
        for module in self.paths:
            if "forward" in vars(module):
                self.source.lost[module] = "the forward that was put onto it"

    def enter(self, path: str) -> None:
        """Reads a module that is called whole."""
        module = self.modules[path]
        if path in self._entered or not any(isinstance(child, LINEAR) for child in module.modules()):
            return
        if is_leaf(module) or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return
        self._entered.add(path)
        graphs = traces(module)
        self.graphs += [Ways(graph, path, self.tensors) for graph in graphs]
        (self._forward if graphs else self.source).method(module, "forward")
        if not graphs and type(module).forward is nn.Sequential.forward:
            self.source.called |= {unwrapped(child): f"{path or 'Sequential'}.forward" for child in module.children()}
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
                layers = [layer for layer in module.modules() if isinstance(layer, LINEAR)]
                if any(_inputs(layer) % count == 0 for layer in layers):
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

    def why_not(self, path: str, way: Way) -> str | None:
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


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _within(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(other + ".")


def _hooked(module: nn.Module) -> bool:
    """Whether something not of ``torch`` or ours acts when a module is called."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    places = [str(getattr(hook, "__module__", "")).partition(".")[0] for hook in hooks]
    return "forward" in vars(module) or not all(place in ("torch", "legibility") for place in places)


def _feed_forward(path: str, module: Any, tensors: Tensors) -> dict[str, list[Way]]:
    """The way inside of ``torch``'s own transformer layer."""
    known = nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    first, second = (f"{path}.{name}" if path else name for name in ("linear1", "linear2"))
    way = Way(first, tensors)
    way.reader, way.parts, way.passed = second, [first, second], [first, second]
    way.still = module.activation in (functional.relu, functional.gelu) or isinstance(module.activation, STILL)
    reason = why_not(tensors, second)
    way.reason = why_not(tensors, first) or (reason and f"{second}, which reads it, {reason}")
    if any(getattr(type(module), name) is not getattr(known, name) for name in ("forward", "_ff_block")):
        way.reason = f"is in a {type(module).__name__}, which has a forward of its own"
    return {first: [way]}


def _take(found: Found, tensors: Tensors, several: list[Way]) -> None:
    way = several[0]
    rows = tensors.with_bias(way.path, "weight", "bias")
    columns = tensors.piece(way.reader, "weight", 1, way.outer, way.inner)
    found.append(Units(way.path, rows, (columns,), tuple(way.between), all(one.still for one in several)))
