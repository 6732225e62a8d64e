"""Held-out imitation as a metric that collects its queries batch by batch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from legibility.scores.imitation._families import Family
from legibility.scores.imitation._family_imitation import FamilyImitation
from legibility.scores.imitation._held_out import held_out_imitation, held_out_twin
from legibility.scores.imitation._queries import Queries

_SCORES = ("kl", "relative_kl", "disagreement", "code_length", "saving", "adjusted_saving", "surplus")


class HeldOutImitation(Metric):
    """`held_out_imitation` over everything that `update` was given, in that order, ranks one after the other.

    `compute()` trains all families, which takes seconds to minutes, and gives float64 scalars under flat names:
    `"<family>/kl"`, `/relative_kl`, `/disagreement`, `/code_length`, `/saving`, `/adjusted_saving`, `/surplus`, `/fvu/<tap>`, `/cka/<tap>`
    (see `FamilyImitation`), and `"median/..."` of each over the families that have a value, `"max/..."` of the savings. If labels were given, the twin
    is fitted too, unless `twin` brings it. On several ranks the queries of all are gathered and every rank computes
    the same. Don't use `forward`, which would score each batch on its own.

    Args:
        students: the held-out families.
        taps: names of the taps that `update` will get.
        twin: cached result of `held_out_twin`.
        blocks: as there, like the others: `passes`, `batch_size`, `learning_rate`, `width`, `seed`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: on `update` for taps, labels or masks that come and go; on `compute` as `held_out_imitation`.

    Example:
        >>> import torch
        >>> from legibility.scores import HeldOutImitation
        >>> from legibility.students import LinearStudent
        >>> score = HeldOutImitation([LinearStudent()])
        >>> inputs = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
        >>> for batch in inputs.split(128):
        ...     score.update(batch, batch @ torch.ones(4, 3).triu())
        >>> values = score.compute()
        >>> bool(values["linear/saving"] > 0.6), bool(values["median/relative_kl"] < 0.1)
        (True, True)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False

    inputs: list[Tensor] | Tensor
    logits: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor
    mask: list[Tensor] | Tensor

    def __init__(
        self,
        students: Sequence[Family],
        *,
        taps: Sequence[str] = (),
        twin: Mapping[str, float] | None = None,
        blocks: int = 5,
        passes: int = 4,
        batch_size: int = 8,
        learning_rate: float = 1e-2,
        width: int = 32,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.students = tuple(students)
        self.taps = tuple(taps)
        self.twin = twin
        self.settings: dict[str, Any] = {
            "blocks": blocks,
            "passes": passes,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "width": width,
            "seed": seed,
        }
        # Names of taps hold dots, which names of states may not.
        for state in ("inputs", "logits", "labels", "mask", *self._tap_states()):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        inputs: Tensor,
        logits: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        taps: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a batch of queries: what the primary read and answered, and if known the labels, mask and taps."""
        given = dict(taps or {})
        if set(given) != set(self.taps):
            raise ValueError(f"`taps` must be {sorted(self.taps)} as announced, got {sorted(given)}.")
        batch = {"inputs": inputs, "logits": logits, "labels": labels, "mask": mask}
        batch |= {state: given[name] for state, name in zip(self._tap_states(), self.taps, strict=True)}
        for state, tensor in batch.items():
            kept = getattr(self, state)
            if (tensor is None) != (len(kept) == 0) and self._update_count > 1:
                raise ValueError(f"`{state}` must be given on every update or on none.")
            if tensor is not None:
                kept.append(tensor.detach())

    def compute(self) -> dict[str, Tensor]:
        """Train all families and name their scores."""
        held = {state: self._gathered(state) for state in ("inputs", "logits", "labels", "mask", *self._tap_states())}
        if held["inputs"] is None or held["logits"] is None:
            raise ValueError("`update` must have been given queries before `compute`, got none.")
        taps = {name: held[state] for state, name in zip(self._tap_states(), self.taps, strict=True)}
        queries = Queries(
            held["inputs"],
            held["logits"],
            held["labels"],
            held["mask"],
            {name: tap for name, tap in taps.items() if tap is not None},
        )
        twin = self.twin
        if twin is None and queries.labels is not None:
            twin = held_out_twin(queries, self.students, **self.settings)
        found = held_out_imitation(queries, self.students, twin=twin, **self.settings)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in _flat(found).items()}

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw one result or a list of them (needs matplotlib)."""
        return self._plot(val, ax)

    def _tap_states(self) -> list[str]:
        return [f"tap_{index}" for index in range(len(self.taps))]

    def _gathered(self, state: str) -> Tensor | None:
        kept = getattr(self, state)
        # Nothing anywhere comes back as an empty tensor once ranks were gathered.
        tensor = dim_zero_cat(kept) if isinstance(kept, Tensor) or kept else None
        return None if tensor is None or tensor.numel() == 0 else tensor


def _flat(found: Mapping[str, FamilyImitation]) -> dict[str, float]:
    by_family = {}
    for name, family in found.items():
        by_family[name] = {score: float(getattr(family, score)) for score in _SCORES}
        by_family[name] |= {f"fvu/{tap}": value for tap, value in family.fvu.items()}
        by_family[name] |= {f"cka/{tap}": value for tap, value in family.cka.items()}
    flat = {f"{name}/{score}": value for name, scores in by_family.items() for score, value in scores.items()}
    for score in dict.fromkeys(score for scores in by_family.values() for score in scores):
        values = [scores[score] for scores in by_family.values() if math.isfinite(scores.get(score, math.nan))]
        flat[f"median/{score}"] = statistics.median(values) if values else math.nan
        if score in ("saving", "adjusted_saving"):
            flat[f"max/{score}"] = max(values, default=math.nan)
    return flat
