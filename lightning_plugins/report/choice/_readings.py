"""Readings of the representation and of concepts as scores of a model that is asked by number."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legibility.lightning_plugins.report.choice._layers import Layers, activations, factor, first_floating, through
from legibility.scores import (
    Material,
    Reading,
    Score,
    activation_l0,
    effective_rank,
    explanation_fidelity,
    gated_disentanglement,
    key_value_memories,
    lens_profile,
    live_units,
    monosemanticity,
    participation_ratio,
    used_given_encoded,
)

_POSITIONS = 8192  # of a layer that are looked at: enough for its spectrum and for lenses
_LEAST = 64
_AT_WORK = 0.1  # of a unit's RMS: smooth functions never say exactly 0


@dataclass(frozen=True)
class Views:
    """Where the readings look.

    Attributes:
        layers: The model's depth.
        head: Modules that make the answers of the last layer's output.
        no_head: Why there are none.
        concepts: Labels of concepts, a row for each example, or None.
        plain: Whether the model reads one tensor and nothing else.
    """

    layers: Layers
    head: list[str]
    no_head: str | None
    concepts: Tensor | None
    plain: bool


def readings(material: Material, views: Views, inputs: Tensor) -> list[tuple[Score, str | None]]:
    """Scores of the representation, and of each why it doesn't apply to this model, or None.

    Args:
        material: The model, asked by number.
        views: Where to look.
        inputs: What the students read; the model too, if `views.plain`.

    Returns:
        Scores for `measure`, with reasons.
    """
    assert material.model is not None
    names = views.layers.names
    none = None if names else "no layer to look at: neither blocks, nonlinearities, several linear layers nor `taps`"
    stream = none or _no_stream(material, views)
    # About 60 calls of the head for each layer, on half of the examples.
    share = _size(material.model, views.head) / max(1, sum(p.numel() for p in material.model.parameters()))
    lens_passes = 2 + 90 * share * max(0, len(names) - 1) * _share_of_rows(material)
    concepts = none or ("no concept labels were given: see `concepts=`" if views.concepts is None else None)
    local = None if views.plain else "the model reads more than one tensor, and neighbours of an input are one"
    local = local if inputs.is_floating_point() else "the inputs are tokens, which have no neighbourhood"
    model: frozenset[Literal["model", "labels", "shifted"]] = frozenset({"model"})
    return [
        # What the answers are divided by doesn't reach the layers.
        (Score("dimension", "directions", None, _dimension(names), model, passes=2, weights_only=True), none),
        (Score("units_at_work", "share", None, _at_work(names), model, passes=2, weights_only=True), none),
        (Score("lens_gap", "ratio", "lower", _lens(names, views.head), model, passes=lens_passes), stream),
        (
            Score("key_value_memories", "share", "higher", _memories(names, views.head), model, passes=640 * share),
            stream,
        ),
        (
            Score(
                "local_error", "ratio", None, _local(inputs), model, passes=8 * 64 * 17 / len(inputs), weights_only=True
            ),
            local,
        ),
        (
            Score("used_given_encoded", "share", "higher", _used(views), model, passes=60, seconds=8.0),
            concepts or views.no_head,
        ),
        (Score("gated_disentanglement", "share", "higher", _gated(views), model, passes=1, seconds=8.0), concepts),
        (Score("monosemanticity", "share", "higher", _monosemantic(views), model, passes=1, seconds=1.0), concepts),
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


def _masks(said: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor | None]:
    """The mask where it fits: a layer with its own positions counts all of them."""
    return {n: mask if mask is not None and mask.shape == t.shape[:-1] else None for n, t in said.items()}


def _dimension(names: Sequence[str]) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        said, mask, _ = _looked(material, names)
        masks = _masks(said, mask)
        depth = {name: participation_ratio(tensor, mask=masks[name]) for name, tensor in said.items()}
        last = list(said)[-1]
        details = {f"participation_ratio/{name}": value for name, value in depth.items()}
        details["effective_rank"] = effective_rank(said[last], mask=masks[last])
        details["live_units"] = float(live_units(said[last], mask=masks[last]))
        details["units"] = float(said[last].shape[-1])
        reason = None if math.isfinite(depth[last]) else "the last layer doesn't vary"
        return Reading(depth[last], reason, details=details)

    return take


def _at_work(names: Sequence[str]) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        said, mask, _ = _looked(material, names)
        masks = _masks(said, mask)
        shares = {n: activation_l0(tensor, mask=masks[n], threshold=_AT_WORK) for n, tensor in said.items()}
        moving = [name for name, tensor in said.items() if live_units(tensor, mask=masks[name]) > 0]
        if len(moving) < len(said):
            return Reading(math.nan, "a layer doesn't vary: what says nothing is not sparse")
        return Reading(sum(shares.values()) / len(shares), details={f"share/{n}": v for n, v in shares.items()})

    return take


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


def _local(inputs: Tensor) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        model = material.model
        assert model is not None

        def probabilities(rows: Tensor) -> Tensor:
            said = first_floating(model(rows))
            assert said is not None
            return said.float() if said.ndim < 2 or said.shape[-1] == 1 else said.float().softmax(-1)

        given = inputs.to(material.queries.inputs.device).float()
        found = explanation_fidelity(given, probabilities)
        return Reading(
            found.error, found.reason or None, details={"unexplained": found.unexplained, "movement": found.movement}
        )

    return take


def _concepts(views: Views, material: Material) -> tuple[Tensor, Tensor, Tensor | None]:
    said, mask, rows = _looked(material, views.layers.names[-1:])
    tensor = said[views.layers.names[-1]]
    assert views.concepts is not None
    labels = views.concepts.to(tensor.device)[rows]
    if labels.ndim == tensor.ndim - 1:
        labels = labels.unsqueeze(-1)
    if labels.shape[:-1] != tensor.shape[:-1]:
        if labels.ndim != 2 or tensor.ndim != 3:
            raise ValueError(
                f"concept labels {tuple(labels.shape)} don't fit the positions of the layer {tuple(tensor.shape)}"
            )
        tensor, mask = tensor.mean(1), None  # one label for each example: of a sequence the mean over its positions
    return tensor, labels.long(), mask


def _used(views: Views) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        assert material.model is not None
        tensor, labels, mask = _concepts(views, material)
        found = used_given_encoded(tensor, labels, through(material.model, views.head), mask=mask)
        details = {"share": found.share, "isolation": found.isolation, "witnessed_share": found.witnessed_share}
        return Reading(found.score, found.reason or None, details=details, findings=found)

    return take


def _gated(views: Views) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        tensor, labels, mask = _concepts(views, material)
        found = gated_disentanglement(tensor, labels, mask=mask)
        details = {"disentanglement": found.disentanglement, "informativeness": found.informativeness}
        return Reading(found.score, found.reason or None, details=details, findings=found)

    return take


def _monosemantic(views: Views) -> Callable[[Material], Reading]:
    def take(material: Material) -> Reading:
        tensor, labels, mask = _concepts(views, material)
        found = monosemanticity(tensor, labels, mask=mask)
        details = {"permuted": found.permuted_selectivity, "coverage": found.coverage}
        return Reading(found.selectivity, found.reason or None, details=details, findings=found)

    return take
