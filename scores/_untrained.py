"""The same architecture with freshly drawn weights: what a score is worth that needs no training."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from legibility.scores.flat_weights import FlatWeights, wraps_flat
from legibility.scores.shards import reshard, spread_like, whole, whole_weights


@contextmanager
def untrained(primary: nn.Module, seed: int = 0, *, within: nn.Module | None = None) -> Iterator[int]:
    """While inside, the module has freshly drawn weights; afterwards its own, bit for bit.

    Each submodule with a ``reset_parameters`` draws by it; inside a model of Hugging Face, its own rule (``_init_weights``)
    comes after, for its embeddings are drawn 50 times smaller than PyTorch's. A parameter that belongs to neither is drawn
    from a normal distribution of its own RMS. Where weights are spread over ranks (FSDP2, FSDP1), all ranks must enter
    together; a model of Hugging Face is whole on each of them while its rule draws, any other one module at a time.

    Args:
        primary: The module.
        seed: Of the draw; the global random stream is left alone.
        within: Under FSDP1, the outermost wrapper, if the module is deeper inside: it holds weights of it.

    Yields:
        The number of parameter tensors that no such rule covers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = layer.weight.detach().clone()
        >>> with untrained(layer) as uncovered:
        ...     print(uncovered, torch.equal(layer.weight, before))
        0 False
        >>> torch.equal(layer.weight, before)
        True
    """
    outermost = primary if within is None else within
    flat = FlatWeights(outermost)
    reshard(outermost)
    nameless = flat.without_names(primary)
    held = [*nameless, *primary.parameters(), *primary.buffers()]
    kept = [(tensor, tensor.detach().clone()) for tensor in held]
    cuda = {device.index for device in [p.device for p in held] + [*flat.devices(primary)] if device.type == "cuda"}
    try:
        # Parameters without names are others each time that they are made.
        at_once = flat.whole(primary) if nameless else nullcontext()
        with torch.random.fork_rng(devices=sorted(cuda)), torch.no_grad(), at_once:
            torch.manual_seed(seed)
            covered: set[int] = set()
            for module in primary.modules():
                # Of its class: wrappers (FSDP1, checkpoints) have the attributes of what they wrap, and it would draw twice.
                if callable(getattr(type(module), "reset_parameters", None)):
                    with flat.whole(module), whole_weights(module):
                        module.reset_parameters()  # type: ignore[operator]
                    covered |= {id(parameter) for parameter in module.parameters()}
            inside: set[nn.Module] = set()
            for owner in primary.modules():
                if _has_rule(owner) and owner not in inside:
                    with flat.whole(owner):
                        covered |= _drawn_by(owner, covered)
                    inside |= set(owner.modules())
            left = 0
            for module in primary.modules():
                for parameter in [*module.parameters(recurse=False)]:  # gathering puts others in their places
                    if id(parameter) not in covered:
                        covered.add(id(parameter))
                        left += 1
                        with flat.whole(module):
                            full = whole(parameter.detach())
                            drawn = torch.randn(full.shape).to(full) * full.float().square().mean().sqrt().to(full)
                            parameter.copy_(spread_like(drawn, parameter))
        yield left
    finally:
        reshard(outermost)
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def _has_rule(owner: nn.Module) -> bool:
    """Whether it draws one module at a time; others have a method of that name without arguments."""
    rule = getattr(type(owner), "_init_weights", None)
    if not callable(rule):
        return False
    try:
        inspect.signature(rule).bind(owner, owner)
    except TypeError:
        return False
    return True


def _drawn_by(owner: nn.Module, covered: set[int]) -> set[int]:
    """Draws by the rule of a model of Hugging Face; the parameters that it covers beyond those that are."""
    # The rule passes by what carries this mark: what is loaded or drawn already.
    mark = "_is_hf_initialized"
    marked = [each for each in (*owner.modules(), *owner.parameters(), *owner.buffers()) if getattr(each, mark, False)]
    left = {each: each.detach().clone() for each in owner.parameters() if id(each) not in covered}
    for parameter in left:  # a gain of 1 that is drawn as 1 again is drawn too
        parameter.add_(1)
    for each in marked:
        setattr(each, mark, False)
    try:
        for each in _children_first(owner):  # a block rescales what they drew
            owner._init_weights(each)  # type: ignore[operator]
    finally:
        for each in marked:
            setattr(each, mark, True)
    drawn = set()
    for parameter, before in left.items():
        if torch.equal(parameter, before + 1):
            parameter.copy_(before)
        else:
            drawn.add(id(parameter))
    return drawn


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """As `apply` goes, which gathers weights itself where FSDP1 wraps a module, and fails inside of a whole one."""
    for child in module.children():
        yield from _children_first(child)
    if not wraps_flat(module):
        yield module
