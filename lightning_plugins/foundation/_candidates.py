"""Which modules may be the primary: those that hold most of what is trained."""

import torch
from torch import nn

from legibility.lightning_plugins.foundation._sizes import outermost, whole_sizes


def candidates(modules: dict[str, nn.Module]) -> list[str]:
    """Names of the modules that hold more than half of the trainable parameters, outermost first.

    All modules while there are lazy parameters, whose sizes are not known.
    """
    parameters = list(modules[""].parameters())
    if any(nn.parameter.is_lazy(parameter) for parameter in parameters):
        return [name for name, module in modules.items() if not isinstance(module, torch.jit.ScriptModule)]
    sizes = whole_sizes(outermost(modules[""]))
    trainable = {id(p): sizes.get(id(p), p.numel()) for p in parameters if p.requires_grad}
    held = _held_by_optimizers(modules[""])
    # A target network may require gradients that nobody uses.
    trainable = {key: size for key, size in trainable.items() if key in held} or trainable
    half = sum(trainable.values()) / 2
    return [
        name
        for name, module in modules.items()
        if sum(trainable.get(id(p), 0) for p in module.parameters()) > half > 0
        and not isinstance(module, torch.jit.ScriptModule)
    ]


def parts_in_words(modules: dict[str, nn.Module]) -> str:
    """The outermost modules with their share of the parameters, and what is within the largest, for messages."""
    own = whole_sizes(outermost(modules[""]))
    sizes = {name: sum(own.get(id(p), 0) for p in m.parameters()) for name, m in modules.items()}
    shares = {name: size / max(sizes[""], 1) for name, size in sizes.items()}
    outer = [n for n in modules if n and ("." not in n or shares.get(n.rpartition(".")[0], 0) > 0.5)][:12]
    return ", ".join(f"{name} ({shares[name]:.0%} of the parameters)" for name in outer) or "none"


def _held_by_optimizers(root: nn.Module) -> set[int]:
    optimizers = getattr(getattr(root, "_trainer", None), "optimizers", None) or ()
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
