"""Lenses and feed-forward values as scores of a model that is asked by number: what a material alone doesn't hold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.report.choice._layers import Layers, activations, factor, through
from legibility.scores import Material, Reading, Score, key_value_memories, lens_profile

_POSITIONS = 8192  # of a layer that are looked at: enough for its spectrum and for lenses
_LEAST = 64


@dataclass(frozen=True)
class Views:
    """Where the readings look.

    Attributes:
        layers: The model's depth.
        head: Modules that make the answers of the last layer's output.
        no_head: Why there are none.
        concepts: Labels of concepts, a row for each example, or None.
        not_plain: Why inputs can't be put to the model as they are; None if it reads one tensor and nothing else.
        tap: The layer that scores of a layer look at; None: what the last linear layer reads.
    """

    layers: Layers
    head: list[str]
    no_head: str | None
    concepts: Tensor | None
    not_plain: str | None
    tap: str | None = None


def unread() -> list[Score]:
    """The same scores where the model can't be asked: for their names."""

    def nothing(material: Material) -> Reading:
        return Reading(math.nan, "the model can't be asked")

    return [
        Score("lens_gap", "ratio", "lower", nothing),
        Score("key_value_memories", "share", "higher", nothing),
    ]


def readings(material: Material, views: Views) -> list[tuple[Score, str | None]]:
    """Scores of the stream and of the memories that write to it, and of each why it doesn't apply, or None.

    Args:
        material: The model, asked by number.
        views: Where to look.

    Returns:
        Scores for `measure`, with reasons.
    """
    assert material.model is not None
    names = views.layers.names
    stream = _no_stream(material, views)
    # About 60 calls of the head for each layer, on half of the examples.
    share = _size(material.model, views.head) / max(1, sum(p.numel() for p in material.model.parameters()))
    lens_passes = 2 + 90 * share * max(0, len(names) - 1) * _share_of_rows(material)
    model: frozenset[Literal["model", "labels", "shifted", "layer", "concepts", "classes"]] = frozenset({"model"})
    return [
        (Score("lens_gap", "ratio", "lower", _lens(names, views.head), model, passes=lens_passes), stream),
        (
            Score("key_value_memories", "share", "higher", _memories(names, views.head), model, passes=640 * share),
            stream,
        ),
    ]


def some_rows(material: Material) -> Tensor:
    """Numbers of the examples that are looked at."""
    counted = material.queries.counted
    positions = counted[0].numel()
    return material.queries.inputs[: max(_LEAST, _POSITIONS // positions)]


def _share_of_rows(material: Material) -> float:
    return len(some_rows(material)) / len(material.queries)


def _size(model: nn.Module, names: Sequence[str]) -> int:
    modules = dict(model.named_modules())
    return sum(p.numel() for name in names for p in modules[name].parameters())


def _no_stream(material: Material, views: Views) -> str | None:
    if not views.layers.blocks:
        return "no residual stream: no list of blocks was found"
    if views.no_head is not None:
        return views.no_head
    said = activations(material, views.layers.names, material.queries.inputs[:2])
    if len({tensor.shape for tensor in said.values()}) != 1 or len(said) < 2:
        return "no residual stream: the blocks are of different widths"
    return None


def _looked(material: Material, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
    """Layers, the positions of them that count, and the numbers of the examples."""
    rows = some_rows(material)
    said = activations(material, names, rows)
    if not said:
        raise ValueError("none of the layers was called once with a row for each example")
    counted = material.queries.counted[rows]
    return said, None if material.queries.mask is None else counted, rows


def _lens(names: Sequence[str], head: Sequence[str]) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        assert material.model is not None
        said, mask, rows = _looked(material, names)
        logits = material.queries.logits[rows]
        read = through(material.model, head)
        with torch.no_grad():
            spoken = read(said[list(said)[-1]])
        scale = factor(spoken, logits) if spoken.shape == logits.shape else 1.0
        found = lens_profile(said, lambda tensor: read(tensor) * scale, logits, mask=mask)
        details = {"information": found.information}
        for name, depth in found.layers.items():
            details |= {
                f"logit_kl/{name}": depth.logit_kl,
                f"tuned_kl/{name}": depth.tuned_kl,
                f"gap/{name}": depth.gap,
            }
        return Reading(found.gap, found.reason or None, details=details, findings=found)

    return take


def _memories(names: Sequence[str], head: Sequence[str]) -> Callable[[Material], Reading]:
    """The feed-forward layer of the last block: each unit's key, and the value that it writes into the stream."""

    def take(material: Material) -> Reading:
        assert material.model is not None
        modules = dict(material.model.named_modules())
        block = modules[names[-1]]
        stream, mask, rows = _looked(material, names[-1:])
        width = stream[names[-1]].shape[-1]
        writers = [m for m in block.modules() if isinstance(m, nn.Linear) and m.out_features == width < m.in_features]
        readers = [m for name in head for m in modules[name].modules() if isinstance(m, nn.Linear)]
        if not writers or not readers:
            raise ValueError("the last block has no feed-forward layer that is wider than the stream, or the head none")
        keys: list[Tensor] = []
        writer = writers[-1]

        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            keys.append(args[0].detach().float())

        handle = writer.register_forward_pre_hook(look)
        try:
            activations(material, names[-1:], rows)
        finally:
            handle.remove()
        found = key_value_memories(
            stream[names[-1]],
            torch.cat(keys).reshape(*stream[names[-1]].shape[:-1], -1),
            writer.weight.detach().float().T,
            readers[-1].weight.detach().float(),
            through(material.model, head),
            mask=mask,
        )
        details = {"permuted_agreement": found.permuted_agreement, "success": found.success}
        details |= {"side_effects": found.side_effects, "memories": float(found.memories)}
        # Agreement, not the success of edits: in the last block every push succeeds.
        return Reading(found.agreement, found.reason or None, details=details, findings=found)

    return take
