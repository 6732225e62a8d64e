"""What each held-out student learnt of the model and what it misses, by example."""

import math

import torch
from torch import Tensor

from legibility.lightning_plugins.report.picture._grids import example_picture
from legibility.lightning_plugins.report.picture._options import ModelPage
from legibility.scores import FamilyImitation, Queries
from legibility.tradeoff.model_page import ExamplePicture, Reading, StudentPicture

_SHOWN = 6
_TEXTS = 3
_COMMONEST = 12
_WORDS = 160


def student_pictures(
    queries: Queries, families: dict[str, FamilyImitation], page: ModelPage
) -> tuple[list[StudentPicture], list[ExamplePicture]]:
    """A picture of each student that answered, and the examples that these show.

    Args:
        queries: The model's answers.
        families: What each family made of them.
        page: How examples are shown.
    """
    examples: dict[int, int] = {}
    drawn: list[ExamplePicture] = []

    def index_of(example: int) -> int:
        if example not in examples:
            examples[example] = len(drawn)
            drawn.append(example_picture(queries.inputs[example], _title(queries, example, page), page, _WORDS))
        return examples[example]

    found = []
    for name, family in families.items():
        if family.by_position.numel() == 0 or not bool(torch.isfinite(family.by_position).any()):
            continue
        nats, decided = family.by_position.cpu(), family.decided.cpu()
        top = queries.logits[family.first_scored :].argmax(-1)
        by_example = nats if nats.ndim == 1 else nats.nanmean(1)
        order = torch.where(torch.isfinite(by_example), by_example, math.nan).argsort()
        order = order[torch.isfinite(by_example[order])]
        shown = _TEXTS if nats.ndim == 2 else _SHOWN
        tokens = nats.ndim == 2

        def reading(
            row: int,
            nats: Tensor = nats,
            top: Tensor = top,
            decided: Tensor = decided,
            first: int = family.first_scored,
            tokens: bool = tokens,
        ) -> Reading:
            values = nats[row].reshape(-1)[:_WORDS]
            return Reading(
                example=index_of(first + row),
                nats=[round(value, 3) if math.isfinite(value) else None for value in values.tolist()],
                model=[page.answer(int(one), tokens) for one in top[row].reshape(-1)[:_WORDS]],
                student=[page.answer(int(one), tokens) for one in decided[row].reshape(-1)[:_WORDS]],
            )

        counted = torch.isfinite(nats)
        flat = nats[counted].double()
        found.append(
            StudentPicture(
                family=name,
                kl=family.kl if math.isfinite(family.kl) else None,
                agreement=float((top == decided)[counted].double().mean()),
                by_answer=_by_answer(flat, top[counted], page, tokens),
                spread=[round(float(q), 4) for q in torch.quantile(_thinned(flat), torch.linspace(0, 1, 11).double())],
                learnt=[reading(int(row)) for row in order[:shown]],
                missed=[reading(int(row)) for row in order.flip(0)[:shown]],
            )
        )
    return found, drawn


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """`quantile` takes no more than some millions."""
    return values[:: 1 + len(values) // most]


def _by_answer(nats: Tensor, top: Tensor, page: ModelPage, tokens: bool) -> list[list[str]]:
    counts = torch.bincount(top)
    kept = counts.argsort(descending=True, stable=True)[: min(_COMMONEST, int((counts > 0).sum()))]
    rows = [(float(nats[top == one].mean()), int(one)) for one in kept]
    return [[_seen(page.answer(one, tokens)), str(int(counts[one])), f"{mean:.3g}"] for mean, one in sorted(rows)]


def _seen(word: str) -> str:
    return {" ": "space", "\n": "newline", "\t": "tab"}.get(word, word)


def _title(queries: Queries, example: int, page: ModelPage) -> str:
    if queries.labels is None or queries.labels.ndim != 1:
        return f"example {example}"
    return f"example {example}, truly {page.answer(int(queries.labels[example]), False)}"
