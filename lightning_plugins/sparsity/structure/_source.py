"""Reads in a module's source which modules its code may call: for code that can't be traced."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from legibility.lightning_plugins.foundation._names import unwrapped

_FOREIGN = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "builtins", "typing", "abc")
# Hooks of the framework that make or list weights, and put nothing through them.
_SETS_UP = ("__init__", "setup", "configure_model", "configure_optimizers", "reset_parameters", "extra_repr")
# Functions that hand modules on (or only ask about them); what they give is followed.
_HANDS_ON = ("enumerate", "zip", "reversed", "list", "tuple", "iter", "next", "getattr")
_ASKS = ("len", "isinstance", "hasattr", "super", "type", "id", "print", "repr")
_CHILDREN = ("children", "named_children", "values", "items", "_modules")
_BELOW = ("modules", "named_modules", "get_submodule")
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Source:
    """Which modules a piece of code calls, reads a tensor of, or lets go where nobody can follow.

    Variables, loops over module lists, helper methods and ``super`` are followed; ``if`` is not (both sides count).
    Each of the three maps a module to where that is written.
    """

    def __init__(self) -> None:
        self.called: dict[nn.Module, str] = {}
        self.read: dict[nn.Module, str] = {}
        self.lost: dict[nn.Module, str] = {}
        self._seen: set[tuple[nn.Module, str, bool]] = set()

    def method(self, module: nn.Module, name: str, inherited: bool = False) -> None:
        """Reads a method (or property) of a user's class, and those that it calls; if asked to, what it overrides too."""
        if (module, name, inherited) in self._seen:
            return
        self._seen.add((module, name, inherited))
        for kind in type(module).__mro__:
            if name in vars(kind) and not _foreign(kind):
                found = inspect.getattr_static(kind, name)
                for inner in ("fget", "__func__", "func"):
                    found = getattr(found, inner, found)
                function = inspect.unwrap(found) if callable(found) else None
                if function is not None:
                    self._function(module, function, f"{kind.__name__}.{name}")
                if not inherited:
                    return

    def _function(self, module: nn.Module, function: Callable[..., Any], where: str) -> None:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            first = function.__code__.co_varnames[0]
        except (OSError, TypeError, SyntaxError, AttributeError, IndexError):
            self.lost.setdefault(module, f"{where}, whose source can't be read")
            return
        names: dict[str, set[nn.Module]] = {first: {module}}
        values = _Values(module, names)
        before = -1
        while sum(map(len, names.values())) != before:  # until no name can be one module more
            before = sum(map(len, names.values()))
            for node in ast.walk(tree):
                _bind(node, values)
        for parent in ast.walk(tree):
            for node in ast.iter_child_nodes(parent):
                if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                    for found in values.of(node):
                        self._use(found, node, parent, where)

    def _use(self, found: nn.Module, node: ast.expr, parent: ast.AST, where: str) -> None:
        if isinstance(parent, ast.Attribute):
            if isinstance(found._parameters.get(parent.attr), nn.Parameter):
                self.read.setdefault(found, where)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "super":
                self.method(found, parent.attr, inherited=True)
            elif parent.attr in ("forward", "__call__"):
                self.called.setdefault(found, where)
            else:
                self.method(found, parent.attr)
        elif isinstance(parent, ast.Call):
            name = getattr(parent.func, "id", getattr(parent.func, "attr", ""))
            if parent.func is node or name == "checkpoint":
                self.called.setdefault(found, where)
            elif name not in (*_HANDS_ON, *_ASKS):
                self.lost.setdefault(found, where)
        elif isinstance(
            parent,
            (ast.Return, ast.Yield, ast.YieldFrom, ast.Dict, ast.DictComp, ast.AugAssign, ast.keyword, ast.Lambda),
        ) or (isinstance(parent, ast.Assign) and not all(isinstance(t, (ast.Name, ast.Tuple)) for t in parent.targets)):
            self.lost.setdefault(found, where)


class _Values:
    """Which modules an expression may be."""

    def __init__(self, module: nn.Module, names: dict[str, set[nn.Module]]) -> None:
        self.module, self.names = module, names

    def of(self, node: ast.AST | None) -> set[nn.Module]:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, set())
        if isinstance(node, ast.Attribute):
            if node.attr == "_modules":
                return _children(self.of(node.value))
            return {m for owner in self.of(node.value) for m in _attribute(owner, node.attr)}
        if isinstance(node, ast.Subscript):
            return _members(self.of(node.value))
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            owners = self.of(getattr(node.func, "value", None))
            if name in _CHILDREN:
                return _children(owners)
            if name in _BELOW:
                return {unwrapped(m) for owner in owners for m in owner.modules() if m is not owner}
            if name == "super":
                return {self.module}
            if name == "getattr" and node.args:
                return _children(self.of(node.args[0]))
            return {m for arg in node.args for m in self.of(arg)} if name in _HANDS_ON else set()
        if isinstance(node, (ast.IfExp, ast.BoolOp, ast.Tuple, ast.List, ast.Starred, ast.NamedExpr, ast.Set)):
            return {m for part in ast.iter_child_nodes(node) for m in self.of(part)}
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            return self.of(node.elt)
        return set()

    def elements(self, node: ast.AST) -> set[nn.Module]:
        """What a loop over an expression gives."""
        if isinstance(node, (ast.Tuple, ast.List, ast.ListComp, ast.GeneratorExp)):
            return self.of(node)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _HANDS_ON:
            return {m for arg in node.args for m in self.elements(arg)}
        if isinstance(node, ast.Call):  # .children() and the like
            return self.of(node)
        return _members(self.of(node))


def _bind(node: ast.AST, values: _Values) -> None:
    if isinstance(node, (ast.For, ast.comprehension)):
        pairs = [(node.target, node.iter)]
        call, names = node.iter, getattr(node.target, "elts", [])
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "enumerate" and len(names) == 2:
            pairs = [(names[1], call.args[0])]
        elif isinstance(call, ast.Call) and getattr(call.func, "id", "") == "zip" and len(names) == len(call.args):
            pairs = list(zip(names, call.args, strict=True))
        for target, many in pairs:
            _name(target, values.elements(many), values)
    elif isinstance(node, (ast.Assign, ast.NamedExpr, ast.AnnAssign)):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=False):
                    _name(one, values.of(value), values)
            else:
                _name(target, values.of(node.value), values)


def _name(target: ast.AST, found: set[nn.Module], values: _Values) -> None:
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and found:
            values.names[node.id] = values.names.get(node.id, set()) | found


def _attribute(owner: nn.Module, name: str) -> Iterator[nn.Module]:
    value = owner._modules.get(name, vars(owner).get(name))
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, nn.Module):
            yield unwrapped(one)


def _members(owners: set[nn.Module]) -> set[nn.Module]:
    """The elements of module lists, and the modules themselves: they may stand in a list of Python's."""
    return owners | _children({owner for owner in owners if isinstance(owner, _LISTS)})


def _children(owners: set[nn.Module]) -> set[nn.Module]:
    return {unwrapped(child) for owner in owners for child in owner.children()}


def _foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN


def framework_methods(module: nn.Module) -> list[str]:
    """Methods of a user's class that ``torch`` or Lightning calls by itself, but ``forward``."""
    kinds = type(module).__mro__
    known = {name for kind in kinds if _foreign(kind) for name in vars(kind)} - {"forward", *_SETS_UP}
    return sorted({name for kind in kinds if not _foreign(kind) for name in vars(kind)} & known)
