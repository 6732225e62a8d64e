"""Records the primary's forward calls, and finds the primary where nobody named it."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from legibility.lightning_plugins.foundation._arguments import argument_names, by_name, pick_input, pick_mask
from legibility.lightning_plugins.foundation._candidates import candidates, parts_in_words
from legibility.lightning_plugins.foundation._choose_output import choose_output
from legibility.lightning_plugins.foundation._compiled import forget_compiled
from legibility.lightning_plugins.foundation._direct_calls import DirectCalls
from legibility.lightning_plugins.foundation._hooks import Hooks
from legibility.lightning_plugins.foundation._names import match_names, modules_by_name, unwrapped
from legibility.lightning_plugins.foundation._recording import Recording, has_predictions, pick_leaf, prediction_shape
from legibility.lightning_plugins.foundation._trees import (
    Leaf,
    batch_first,
    is_floating,
    leaves_in,
    padded,
    rows_of,
    tensors_in,
    whole,
)

_PATIENCE = 10  # training steps without a call of the model, after which that is said


class _Call(NamedTuple):
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    tapped: dict[str, Leaf]
    copies: list[tuple[Tensor, int, Tensor]]  # tensors of the result, their versions, and copies in the graph
    enabled: bool  # whether gradients were
    direct: bool = False  # of `forward` itself, as far as anybody knows yet


class Recorder:
    """Records the forward calls of one module inside a LightningModule.

    Args:
        root: The LightningModule.
        model: Name of the module to record, or None: found at the first recorded step as the outermost module called
            that holds more than half of the trainable parameters and returns more than a loss.
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
        self._modules = modules_by_name(root)
        self._hooks = Hooks(root)
        self._direct = DirectCalls(root, self._record_direct)
        #: Path of what is imitated; found at the first call, if several tensors are returned and one tells itself.
        self.output = output
        self._with_gradients = with_gradients
        self._open = False
        self._calls: list[_Call] = []
        self._tapped: dict[str, Leaf] = {}
        self._arguments: list[str] = []
        self._copying, self._traced = with_gradients, False
        self._steps, self._recorded, self._compared = 0, False, False
        names = list(self._modules)
        # "" is the root itself, as it is found by modules that are called as a whole.
        self.model = match_names(model, names, "model")[0] if model else model
        self.reads = match_names(reads, names, "reads")[0] if reads is not None else None
        self.taps = match_names(taps, names, "taps") if taps else []
        self._inner = list(dict.fromkeys([*self.taps, *([self.reads] if self.reads is not None else [])]))

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
        forget_compiled()
        scripted = [n for n in [self.model, *self._inner] if n and isinstance(self._modules[n], torch.jit.ScriptModule)]
        if scripted:
            raise ValueError(
                f"`model`/`taps`/`reads`: {', '.join(scripted)} is compiled by TorchScript, which runs no hooks of ours. "
                "Name a module of Python around it, or call it from one."
            )
        for name in [self.model] if self.model is not None else candidates(self._modules):
            self._hooks.add(name, self._modules[name], self._record)
        if not self.model:
            self._direct.install()
        for name in self._inner:
            self._hooks.add(f"tap {name}", self._modules[name], self._tap)

    def remove(self) -> None:
        """Takes every hook away and forgets what was recorded."""
        self._hooks.remove()
        self._direct.remove()
        self.discard()
        if 0 < self._steps < _PATIENCE:
            self._say_if_silent()

    def open(self) -> None:
        """Starts recording: the user's step begins."""
        self.discard()
        self._open = True

    def discard(self) -> None:
        """Stops recording and forgets."""
        self._open = False
        self._calls = []
        self._tapped = {}

    def close(self, batch: Any = None) -> list[Recording]:
        """Stops recording and returns the primary's calls of this step, in order.

        Args:
            batch: The batch they belong to, whose labels may tell which of several outputs is meant.

        Raises:
            ValueError: The model was not found, a tap never fired, or the output cannot be used.
        """
        # Reentrant checkpointing calls without gradients and puts the result into the graph afterwards.
        calls = [call for call in self._calls if call.enabled or not self._with_gradients or _in_graph(call.result)]
        self.discard()
        self._steps += 1
        if self.model is None:
            self.model = self._find(calls)
            if not self._traced:  # a graph would be compiled anew without the hooks that it holds
                self._hooks.keep([self.model, *(f"tap {name}" for name in self._inner)])
        if calls and not any(call.direct for call in calls) and "torch._dynamo" not in sys.modules:
            self._direct.remove()  # what was compiled meanwhile would be compiled anew
        calls = [call for call in calls if call.name == self.model]
        self._recorded = self._recorded or bool(calls)
        if self._steps == _PATIENCE:
            self._say_if_silent()
        fresh = [_without_stale(call, before) for call, before in zip(calls, [None, *calls], strict=False)]
        recordings = [self._recording(call, batch) for call in fresh]
        if calls and self._copying:
            # Copies cost time and memory: they are made in the first step, and later if that showed the need.
            self._copying = any(tensor._version != version for call in calls for tensor, version, _ in call.copies)
        return recordings

    def _find(self, calls: list[_Call]) -> str:
        # Sizes are asked for again: lazy parameters have some only after the first call.
        holders = set(candidates(self._modules))
        calls = [call for call in calls if call.name in holders]
        predicting = [call for call in calls if self.output is not None or has_predictions(call.result)]
        if not calls:
            raise ValueError(
                "`model`: no single module that holds most of the trainable parameters was called in the step, so the "
                "primary can't be found. Name it with `model=`, call the module as `self.net(x)` instead of "
                "`self.net.forward(x)`, or give `use_reentrant=False` if it is checkpointed; the parts of this "
                f"LightningModule: {parts_in_words(self._modules)}."
            )
        # A module that contains another one has the shorter name: the outermost call is what the user calls.
        return min((call.name for call in predicting or calls), key=len)

    def _recording(self, call: _Call, batch: Any) -> Recording:
        missing = [name for name in self._inner if name not in call.tapped]
        if missing:
            raise ValueError(
                f"`taps`/`reads`: {', '.join(missing)} never ran with gradients while {self.model or 'the module'!r} "
                "was called. Name modules that its forward calls; inside of `torch.utils.checkpoint` that needs "
                "`use_reentrant=False`."
            )
        self._arguments = self._arguments or argument_names(unwrapped(self.primary))
        arguments = by_name(self._arguments, call.args, call.kwargs)
        named = None if self.reads is None else call.tapped[self.reads]
        if self.output is None:
            self.output = choose_output(call.result, batch, arguments, named)
        leaf = pick_leaf(call.result, self.output)
        read = pick_input(arguments, rows_of(leaf)) if named is None else named
        trivial, self._compared = not self._compared and named is not None and _same(read, leaf), True
        if trivial:
            raise ValueError(
                f"`reads`: {self.reads!r} returns the very numbers that the students shall imitate, so there is nothing "
                "to learn. Name a module that runs before it."
            )
        inputs, counts = padded(read)
        inputs = batch_first(inputs, rows_of(leaf))
        source = leaf.data if isinstance(leaf, PackedSequence) else leaf
        changed = [copy for tensor, version, copy in call.copies if tensor is leaf and tensor._version != version]
        output, returned = padded(leaf, positions=inputs.shape[1] if inputs.ndim > 1 else 0)
        output = whole(changed[0] if changed else output)
        for mask in (pick_mask(arguments, inputs), returned):
            counts = mask if counts is None and mask is not None and mask.shape == inputs.shape[:2] else counts
        if prediction_shape(output, inputs)[0] != inputs.shape[0]:
            raise ValueError(
                f"`reads`: students would read {tuple(inputs.shape)} and imitate {tuple(output.shape)}, and these do "
                "not have one row for each example alike (graphs, or time before batch). Name a module whose output "
                "has a row for each prediction with `reads=`, or with `model=` the part that makes predictions out of such "
                f"rows; modules: {', '.join([n for n in self._modules if n][-12:])}."
            )
        return Recording(
            args=call.args,
            kwargs=call.kwargs,
            inputs=whole(inputs.detach()),
            mask=counts,
            output=output,
            taps={
                name: whole(padded(call.tapped[name], inputs.shape[1] if inputs.ndim > 1 else 0)[0])
                for name in self.taps
            },
            source=source,
            arguments=arguments,
        )

    def _say_if_silent(self) -> None:
        if self._with_gradients and not self._recorded and self.model is not None:
            rank_zero_warn(
                f"`model`: {self.model or 'the LightningModule'!r} was not called with gradients in {self._steps} "
                "training steps, so nothing was recorded. Call it as `module(x)`, not `module.forward(x)`; use "
                "`use_reentrant=False` if it is checkpointed; or name another module with `model=`."
            )

    def _recordable(self) -> bool:
        if not self._open:
            return False
        if not self._with_gradients:
            return True
        return torch.is_grad_enabled() and not recomputing()

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if not torch.compiler.is_compiling() and name == "" and self._calls and self._calls[-1].direct:
            self._calls.pop()  # its `forward` was run by a call, which is recorded here
        self._note(name, args, kwargs, result)

    def _record_direct(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._note("", args, kwargs, result, direct=True)

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, *, direct: bool = False
    ) -> None:
        if self._with_gradients and recomputing():
            if name == self.model and not self._recorded:
                raise ValueError(
                    f"`model`: {name or 'the LightningModule'!r} is hidden from autograd inside of a larger part that "
                    "is checkpointed. Give `use_reentrant=False` to `torch.utils.checkpoint`, or name a module around "
                    "that part with `model=`."
                )
            return
        if not self._open or (not torch.compiler.is_compiling() and _within_transform()):
            return
        copies = []
        if torch.compiler.is_compiling():
            self._traced = True
        elif self._copying:
            copies = [(t, t._version, t.clone()) for _, t in tensors_in(result) if t.requires_grad]
        enabled = torch.is_grad_enabled()
        self._calls.append(_Call(name, args, kwargs, result, dict(self._tapped), copies, enabled, direct))

    def _tap(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._recordable():
            name = name.removeprefix("tap ")
            self._tapped[name] = _kept(result if isinstance(result, Tensor) else _first_floating(name, result))


def _within_transform() -> bool:
    """Inside `torch.func.vmap` and the like, whose tensors must not leave it."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def recomputing() -> bool:
    """Inside backward, a forward call is activation checkpointing's recomputation."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _in_graph(result: Any) -> bool:
    return any(tensor.requires_grad for _, tensor in tensors_in(result))


def _kept(leaf: Leaf) -> Leaf:
    # A copy: an in-place operation after the tap would change what was recorded.
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return PackedSequence(leaf.data.detach().clone(), *leaf[1:])


def _first_floating(name: str, result: Any) -> Leaf:
    for _, leaf in leaves_in(result):
        if is_floating(leaf):
            return leaf
    raise ValueError(f"`taps`: {name} returned no floating-point tensor ({type(result).__name__}).")


def _same(read: Leaf, leaf: Leaf) -> bool:
    return (
        isinstance(read, Tensor) and isinstance(leaf, Tensor) and read.shape == leaf.shape and torch.equal(read, leaf)
    )


def _without_stale(call: _Call, before: _Call | None) -> _Call:
    """Without taps that are still those of the call before."""
    if before is None:
        return call
    return call._replace(tapped={n: leaf for n, leaf in call.tapped.items() if leaf is not before.tapped.get(n)})
