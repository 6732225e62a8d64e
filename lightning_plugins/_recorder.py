"""Finds the primary and its taps by name, and records the primary's forward calls."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from legibility.lightning_plugins._recording import Recording, pick_input, pick_mask, pick_output, tensors_in

# Names that wrappers (torch.compile, FSDP, activation checkpointing) put into module paths.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_name(name: str) -> str:
    """A module's name as the user wrote it, without the prefixes of wrappers.

    Example:
        >>> plain_name("net._orig_mod.blocks.0")
        'net.blocks.0'
    """
    return _WRAPPERS.sub("", name + ".").removesuffix(".")


def match_names(patterns: str | Sequence[str], names: Iterable[str], argument: str) -> list[str]:
    """The names that match any of the shell patterns, in their own order.

    Args:
        patterns: One pattern or several (``"encoder.layers.*"``).
        names: What there is.
        argument: The caller's argument, for the message.

    Raises:
        ValueError: A pattern matches nothing; the message lists near names.

    Example:
        >>> match_names("blocks.*", ["blocks", "blocks.0", "blocks.1", "head"], "taps")
        ['blocks.0', 'blocks.1']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name in names if name]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names[:8]
            raise ValueError(
                f"`{argument}` pattern {pattern!r} matches no name. Near: {', '.join(near) or 'there are no names'}."
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


class _Call(NamedTuple):
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    tapped: dict[str, Tensor]


class Recorder:
    """Records the forward calls of one module inside a LightningModule.

    Args:
        root: The LightningModule.
        model: Name of the module to record, or None: found at the first recorded step as the outermost module called
            that holds more than half of the parameters.
        taps: Patterns over module names (relative to ``root``) whose outputs are recorded too.
        output: Dotted path of the tensor to imitate within the model's result.
        reads: Name of a module whose output the students read instead of the model's input.
        with_gradients: Record only calls made with gradients enabled (a training step), outside of the recomputation
            that activation checkpointing does.

    Raises:
        ValueError: A name or pattern matches nothing; near names are listed.
    """

    def __init__(
        self,
        root: nn.Module,
        *,
        model: str | None = None,
        taps: str | Sequence[str] = (),
        output: str | None = None,
        reads: str | None = None,
        with_gradients: bool = True,
    ) -> None:
        self._modules: dict[str, nn.Module] = {plain_name(name): module for name, module in root.named_modules()}
        self._output = output
        self._with_gradients = with_gradients
        self._model_handles: dict[str, RemovableHandle] = {}
        self._tap_handles: list[RemovableHandle] = []
        self._open = False
        self._calls: list[_Call] = []
        self._tapped: dict[str, Tensor] = {}
        names = list(self._modules)
        # "" is the root itself, as it is found by modules that are called as a whole.
        self.model = match_names(model, names, "model")[0] if model else model
        self.reads = match_names(reads, names, "reads")[0] if reads is not None else None
        self.taps = match_names(taps, names, "taps") if taps else []
        self._candidates = [self.model] if self.model is not None else _candidates(self._modules)

    @property
    def _inner(self) -> list[str]:
        return list(dict.fromkeys([*self.taps, *([self.reads] if self.reads is not None else [])]))

    @property
    def primary(self) -> nn.Module:
        """The recorded module; only after it was found."""
        assert self.model is not None
        return self._modules[self.model]

    def module(self, name: str) -> nn.Module:
        """A module by the name the user knows."""
        return self._modules[name]

    def install(self) -> None:
        """Adds the hooks. Nothing is recorded until :meth:`open`."""
        assert not self._model_handles
        for name in self._candidates:
            handle = self._modules[name].register_forward_hook(self._hook(name), with_kwargs=True)
            self._model_handles[name] = handle
        for name in self._inner:
            handle = self._modules[name].register_forward_hook(self._tap_hook(name), with_kwargs=True)
            self._tap_handles.append(handle)

    def remove(self) -> None:
        """Takes every hook away and forgets what was recorded."""
        for handle in [*self._model_handles.values(), *self._tap_handles]:
            handle.remove()
        self._model_handles, self._tap_handles = {}, []
        self.discard()

    def open(self) -> None:
        """Starts recording: the user's step begins."""
        self.discard()
        self._open = True

    def discard(self) -> None:
        """Stops recording and forgets."""
        self._open = False
        self._calls = []
        self._tapped = {}

    def close(self) -> list[Recording]:
        """Stops recording and returns the primary's calls of this step, in order.

        Raises:
            ValueError: The model was not found, a tap never fired, or the output cannot be used.
        """
        calls = self._calls
        self.discard()
        if self.model is None:
            if not calls:
                raise ValueError(
                    "`model`: no single module that holds most of the parameters was called in the step, so the "
                    "primary can't be found. Name it with `model=`; modules of this LightningModule: "
                    f"{', '.join([n for n in self._modules if n][:12]) or 'none'}."
                )
            # A module that contains another one has the shorter name: the outermost call is what the user calls.
            self.model = min((call.name for call in calls), key=len)
            for name in [name for name in self._model_handles if name != self.model]:
                self._model_handles.pop(name).remove()
            self._candidates = [self.model]
        return [self._recording(call) for call in calls if call.name == self.model]

    def _recording(self, call: "_Call") -> Recording:
        missing = [name for name in self._inner if name not in call.tapped]
        if missing:
            raise ValueError(
                f"`taps`/`reads`: {', '.join(missing)} never ran while {self.model or 'the module'!r} was called. "
                "Name modules that its forward calls (a model compiled and run before fit hides its children)."
            )
        inputs = pick_input(call.args, call.kwargs) if self.reads is None else call.tapped[self.reads]
        return Recording(
            args=call.args,
            kwargs=call.kwargs,
            inputs=inputs.detach(),
            mask=pick_mask(call.args, call.kwargs, inputs),
            output=pick_output(call.result, self._output),
            taps={name: call.tapped[name] for name in self.taps},
        )

    def _recordable(self) -> bool:
        if not self._open:
            return False
        # Inside backward, a forward call is activation checkpointing's recomputation.
        return not self._with_gradients or (torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1)

    def _hook(self, name: str) -> Any:
        # The hook must not fire for a deep copy of the module (WeightAveraging, EMA): it checks whom it was put on.
        target = self._modules[name]

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if module is target and self._recordable():
                self._calls.append(_Call(name, args, kwargs, result, dict(self._tapped)))

        return record

    def _tap_hook(self, name: str) -> Any:
        target = self._modules[name]

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if module is target and self._recordable():
                found = [tensor for _, tensor in tensors_in(result) if tensor.is_floating_point()]
                if not found:
                    raise ValueError(f"`taps`: {name} returned no floating-point tensor ({type(result).__name__}).")
                # A copy: an in-place operation after the tap would change what was recorded.
                self._tapped[name] = found[0].detach().clone()

        return record


def _candidates(modules: dict[str, nn.Module]) -> list[str]:
    """Names of the modules that hold more than half of the trainable parameters, outermost first."""
    trainable = {id(p): p.numel() for p in modules[""].parameters() if p.requires_grad}
    half = sum(trainable.values()) / 2
    return [
        name for name, module in modules.items() if sum(trainable.get(id(p), 0) for p in module.parameters()) > half > 0
    ]
