"""What a user gives a report, refused before training where it can be known."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from legibility.lightning_plugins.foundation._names import match_names
from legibility.lightning_plugins.foundation._trees import at_path
from legibility.lightning_plugins.report.choice._further import score_names
from legibility.lightning_plugins.report.picture._options import ModelPage

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def check_texts(*, arm: Any, folder: Any, **others: Any) -> None:
    """Names and paths.

    Raises:
        TypeError: No string.
        ValueError: `arm` is empty.
    """
    if not isinstance(arm, str):
        raise TypeError(f"`arm` must be a string, the name of this run in comparisons, got {arm!r}.")
    if not arm:
        raise ValueError("`arm` must not be empty: it names this run in comparisons.")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"`folder` must be a path or None, got {folder!r}.")
    for argument, value in others.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"`{argument}` must be a string or None, got {value!r} ({type(value).__name__}).")


def check_scores(scores: str | Sequence[str]) -> list[str]:
    """Patterns, each of which matches the name of a score; an empty list chooses none.

    Raises:
        TypeError: Something else than strings.
        ValueError: A pattern matches nothing; near names are listed.
    """
    patterns = [scores] if isinstance(scores, str) else list(scores)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"`scores` must be shell patterns over names of scores, got {scores!r}.")
    match_names(patterns, score_names(), "scores")
    return patterns


def check_page(page: Any) -> ModelPage | None:
    """How the page is made; None if there is to be none.

    Raises:
        TypeError: Something else than a bool or a `ModelPage`.
    """
    if not isinstance(page, (bool, ModelPage)):
        raise TypeError(f"`page` must be True, False or a `ModelPage`, got {page!r}.")
    return (ModelPage() if page else None) if isinstance(page, bool) else page


class ConceptsSought:
    """Refuses a path of concept labels that leads nowhere, before the first step.

    Labels may be in the batches of validation only, or of training only. So it is refused where neither a batch of the
    sanity check nor the first one of training has them. Without a sanity check nobody knows yet what validation has.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._looked = self._found = False

    def in_sanity_check(self, batch: Any) -> None:
        """A validation batch before training."""
        self._looked, self._found = True, self._found or self._leads_to_labels(batch)

    def in_training(self, batch: Any, trainer: "Trainer", step: int) -> None:
        """A training batch; only the first is looked at.

        Raises:
            ValueError: No batch has labels there.
        """
        if self._path is None or step or self._found or not (self._looked or not trainer.enable_validation):
            return
        if not self._leads_to_labels(batch):
            raise ValueError(
                f"`concepts` = {self._path!r} leads to no labels in the batches of "
                f"{'validation or ' if self._looked else ''}training (a {type(batch).__name__}): give the dotted path of "
                'a tensor with a row for each example, such as "2" for the third part of a tuple, or "concepts" for a key.'
            )

    def _leads_to_labels(self, batch: Any) -> bool:
        found = None if self._path is None else at_path(batch, self._path)
        return isinstance(found, Tensor) and found.ndim > 0
