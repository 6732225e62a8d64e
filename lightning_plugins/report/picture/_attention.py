"""Where attention heads look, mean over some examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.foundation._trees import leaves_in
from legibility.lightning_plugins.report.choice._further import Seen
from legibility.lightning_plugins.report.choice._layers import asked
from legibility.lightning_plugins.report.picture._grids import coarse_mean, grid_of
from legibility.tradeoff.model_page import AttentionPicture

_EXAMPLES = 32
_LAYERS, _HEADS, _POSITIONS = 16, 16, 48


def attention_pictures(seen: Seen) -> list[AttentionPicture]:
    """Maps of all modules that give their weights away: ``nn.MultiheadAttention``, and those that return them.

    Raises:
        ValueError: There is no attention, or it keeps its weights to itself.
    """
    material = seen.material
    assert material is not None and material.model is not None
    modules = {n: m for n, m in material.model.named_modules() if "attention" in type(m).__name__.lower()}
    if not modules:
        raise ValueError("no module is called attention")
    found: dict[str, Tensor] = {}

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            maps = [t for _, t in leaves_in(result) if isinstance(t, Tensor) and t.ndim == 4 and _are_shares(t)]
            if maps:
                found[name] = maps[0].detach().float().mean(0)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    handles += [
        module.register_forward_pre_hook(ask, with_kwargs=True)
        for module in modules.values()
        if isinstance(module, nn.MultiheadAttention)
    ]
    try:
        asked(material, material.queries.inputs[:_EXAMPLES])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("its attention doesn't give its weights away (computed inside one fused function)")
    return [
        AttentionPicture(name, [grid_of(coarse_mean(head, _POSITIONS), _scale(head)) for head in maps[:_HEADS]])
        for name, maps in list(found.items())[:_LAYERS]
    ]


def _scale(head: Tensor) -> float:
    return float(coarse_mean(head, _POSITIONS).max())


def _are_shares(maps: Tensor) -> bool:
    if not maps.is_floating_point() or bool((maps < 0).any()):
        return False
    total = maps.float().sum(-1)
    return bool(torch.isclose(total, torch.ones_like(total), atol=1e-2).float().mean() > 0.5)
