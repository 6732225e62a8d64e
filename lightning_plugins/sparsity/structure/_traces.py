"""Every way that a module's ``forward`` may go, as graphs."""

import dis
import inspect

import torch
from torch import nn
from torch.fx import Graph, Proxy, Tracer

from legibility.lightning_plugins.foundation._names import unwrapped

_MOST_PATHS = 16  # through one forward, for each combination of mode and absent arguments


class _Tracer(Tracer):
    """Takes ``torch``'s own layers as they are, also where a wrapper (FSDP) gave them a class of its own.

    An ``if`` that asks for values goes as ``decisions`` say, and beyond them to the other side.
    """

    def __init__(self, decisions: list[bool]) -> None:
        super().__init__()
        self.decisions = list(decisions)
        self.asked = 0

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def to_bool(self, obj: Proxy) -> bool:
        self.asked += 1
        if self.asked > len(self.decisions):
            self.decisions.append(False)
        return self.decisions[self.asked - 1]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of ``torch``'s own layers, or of a class made from one."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules.")]
    return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and kinds[0] is not nn.Module


def traces(module: nn.Module) -> list[Graph]:
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
