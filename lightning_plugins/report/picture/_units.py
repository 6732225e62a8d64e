"""What units say to inputs, and what they stand for."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from legibility.lightning_plugins.report.choice._further import Seen
from legibility.lightning_plugins.report.choice._layers import activations
from legibility.lightning_plugins.report.choice._readings import some_rows
from legibility.lightning_plugins.report.picture._grids import grid_of
from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.scores import participation_ratio
from legibility.tradeoff.model_page import UnitsPicture

_ANSWERS = 16  # that units are compared by: the commonest ones
_BINS = 8  # of a regression's answer
_SIGMAS = 3.0


def units_pictures(seen: Seen, page: ModelPage, classifies: bool) -> list[UnitsPicture]:
    """Each layer's units at some inputs and at each answer.

    Args:
        seen: The model, asked by number.
        page: How much is drawn.
        classifies: Whether the answers are classes; otherwise values are cut into bins of equal count.

    Returns:
        A picture for each layer that could be watched.
    """
    material = seen.material
    assert material is not None
    rows = some_rows(material)
    said = activations(material, seen.views.layers.names, rows)
    logits, counted = material.queries.logits[rows], material.queries.counted[rows]
    tokens = logits.ndim == 3
    answers, names = _answers(logits, counted, page, classifies, tokens)
    concepts = _concepts(seen, rows, counted)
    found = []
    for layer, tensor in said.items():
        per_position = tensor.shape[:-1] == counted.shape
        if per_position:
            values, own = tensor[counted], answers[counted]
        elif tensor.ndim > 2 and counted.ndim == 1:
            values, own = tensor.mean(1), answers  # of places of a picture the mean
        else:
            continue
        words = _columns(seen, rows, counted, own, page, tokens)
        pictured = _picture(layer, values.double(), own, names, words, page)
        if concepts is not None and values.shape[0] == concepts.shape[0]:
            pictured = _by_concepts(pictured, values.double(), concepts)
        found.append(pictured)
    return found


def _answers(
    logits: Tensor, counted: Tensor, page: ModelPage, classifies: bool, tokens: bool
) -> tuple[Tensor, list[str]]:
    """The model's answers as numbers of the commonest ones, -1 for others, and their names."""
    if not classifies:
        line = logits.flatten(1)[:, 0] if logits.ndim == 2 else logits[..., 0]
        edges = torch.quantile(line[counted].double(), torch.arange(1, _BINS, device=line.device).double() / _BINS)
        return torch.bucketize(line.double(), edges), [f"bin {number + 1}" for number in range(_BINS)]
    top = logits.argmax(-1)
    counts = torch.bincount(top[counted].flatten())
    kept = counts.argsort(descending=True, stable=True)[: min(_ANSWERS, int((counts > 0).sum()))]
    # Classes in their own order, words by how common they are.
    kept = kept if tokens else kept.sort().values
    place = torch.full((max(len(counts), logits.shape[-1]),), -1, device=top.device)
    place[kept] = torch.arange(len(kept), device=top.device)
    return place[top], [page.answer(int(number), tokens) for number in kept]


def _columns(
    seen: Seen, rows: Tensor, counted: Tensor, answers: Tensor, page: ModelPage, tokens: bool
) -> list[str] | None:
    """The words that were read at each position; None where columns are examples."""
    if not tokens or seen.inputs.is_floating_point() or seen.inputs.shape != seen.inputs.shape[:1] + counted.shape[1:]:
        return None
    read = seen.inputs[rows.cpu()][counted.cpu()][: page.examples]
    return [page.word(int(token)) for token in read]


def _concepts(seen: Seen, rows: Tensor, counted: Tensor) -> Tensor | None:
    """A row of concept values for each position that counts, or for each example; None without labels."""
    labels = seen.views.concepts
    if labels is None:
        return None
    labels = labels.long().to(rows.device)[rows]
    if labels.ndim == 3 and labels.shape[:2] == counted.shape:
        return labels[counted]
    return labels.unsqueeze(-1) if labels.ndim == 1 else labels


def _by_concepts(picture: UnitsPicture, values: Tensor, concepts: Tensor) -> UnitsPicture:
    """The same, with a column for each value of each concept in place of the answers."""
    spread = values.std(0, correction=0).clamp(min=1e-30)
    scaled = ((values - values.mean(0)) / spread)[:, picture.shown]
    names, columns, shares = [], [], []
    for number in range(concepts.shape[1]):
        found = concepts[:, number]
        kept = found.unique()[:_ANSWERS]  # type: ignore[no-untyped-call]
        indicator = torch.stack([found == one for one in kept], 1).double()
        counts = indicator.sum(0)
        means = (indicator.T @ scaled) / counts.clamp(min=1).unsqueeze(1)
        shares.append(_explained(scaled, means, counts))
        columns.append(means)
        names += [f"{number}={int(one)}" for one in kept]
    best = torch.stack(shares).amax(0)
    return replace(
        picture,
        answers=names[: 4 * _ANSWERS],
        by_answer=grid_of(torch.cat(columns)[: 4 * _ANSWERS].T, _SIGMAS),
        selectivity=[round(float(share), 3) for share in best],
    )


def _picture(
    layer: str,
    values: Tensor,
    answers: Tensor,
    names: list[str],
    words: list[str] | None,
    page: ModelPage,
) -> UnitsPicture:
    spread = values.std(0, correction=0)
    live = spread > 1e-3 * spread.square().mean().sqrt()
    scaled = torch.where(live, (values - values.mean(0)) / spread.clamp(min=1e-30), 0.0)
    known = answers >= 0
    indicator = torch.nn.functional.one_hot(answers[known], len(names)).double()
    counts = indicator.sum(0)
    means = (indicator.T @ scaled[known]) / counts.clamp(min=1).unsqueeze(1)
    selectivity = _explained(scaled[known], means, counts)
    chosen = torch.arange(values.shape[1], device=values.device)[live]
    if len(chosen) > page.units:
        chosen = chosen[selectivity[chosen].argsort(descending=True, stable=True)[: page.units]]
    # By the answer at which a unit is highest, within it the clearest first.
    best = means[:, chosen].argmax(0)
    chosen = chosen[(best * 10.0 - selectivity[chosen]).argsort(stable=True)]
    if words is None:
        columns = _spread_columns(answers, page.examples)
        labels = [names[int(number)] if number >= 0 else "other" for number in answers[columns]]
    else:
        columns, labels = torch.arange(len(words), device=values.device), words
    dimension = participation_ratio(values) if len(values) > 4 else math.nan
    return UnitsPicture(
        layer=layer,
        units=values.shape[1],
        live=int(live.sum()),
        shown=chosen.tolist(),
        columns=labels,
        values=grid_of(scaled[columns][:, chosen].T, _SIGMAS),
        answers=names,
        by_answer=grid_of(means[:, chosen].T, _SIGMAS),
        selectivity=[round(float(share), 3) for share in selectivity[chosen]],
        dimension=round(dimension, 2) if math.isfinite(dimension) else None,
    )


def _explained(scaled: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """Epsilon squared of each unit by the answers: the share of variance, corrected for their number."""
    number, answers = len(scaled), int((counts > 0).sum())
    total = scaled.square().sum(0)
    overall = scaled.mean(0)
    between = (counts.unsqueeze(1) * (means - overall).square()).sum(0)
    within = total - number * overall.square() - between
    if number <= answers:
        return torch.zeros_like(total)
    variance = total - number * overall.square()
    share = 1 - (number - 1) / (number - answers) * within / variance.clamp(min=1e-30)
    return torch.where(variance > 1e-9 * number, share.clamp(0, 1), 0.0)  # a dead unit stands for nothing


def _spread_columns(answers: Tensor, most: int) -> Tensor:
    """Examples in the order of their answers, equally many of each as far as there are."""
    order = answers.argsort(stable=True)
    if len(order) <= most:
        return order
    place = torch.linspace(0, len(order) - 1, most, device=order.device).round().long()
    return order[place]
