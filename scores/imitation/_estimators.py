"""Families that gradients don't reach: forest, nearest neighbours, kernel machine, small tree (scikit-learn)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from legibility.scores._optional import optional
from legibility.scores.imitation._rows import ESTIMATORS, Array

MOST_ROWS = 4096
"""An estimator is fitted to no more rows than this, the first ones."""


@dataclass(frozen=True)
class Estimator(ABC):
    """A held-out family fitted by scikit-learn (extra `sklearn`): no gradient, so nothing that a primary adapted to.

    It reads rows of numbers (features, images, sequences with one answer; flattened) and gives one answer for each, or
    tokens with an answer each (at each, the last 8 are its row). Tokens with one answer for all, numbers with one per
    position, and more than 256 answers to a token are left to the neural families. All of its settings are numbers of at
    least 1.
    """

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value < 1:
                raise ValueError(f"`{setting.name}` of {type(self).__name__} must be at least 1, got {value}.")

    @property
    def name(self) -> str:
        """Short name in lower case: `ForestEstimator` -> `forest`."""
        return type(self).__name__.removesuffix("Estimator").lower()

    @abstractmethod
    def classifier(self, seed: int) -> Any:
        """Not yet fitted; learns decisions."""

    @abstractmethod
    def regressor(self, seed: int) -> Any:
        """Not yet fitted; learns shares of several classes at once."""

    @abstractmethod
    def scores(self, fitted: Any, rows: Array, classes: int) -> Array:
        """What the classifier says about rows: `(n, its classes)` logits, up to a temperature."""


@dataclass(frozen=True)
class ForestEstimator(Estimator):
    """A random forest.

    Attributes:
        trees: how many.

    Example:
        >>> from legibility.scores import ForestEstimator
        >>> ForestEstimator().name
        'forest'
    """

    trees: int = 100

    def classifier(self, seed: int) -> Any:
        """A `RandomForestClassifier`."""
        return _sklearn("ensemble").RandomForestClassifier(self.trees, random_state=seed)

    def regressor(self, seed: int) -> Any:
        """A `RandomForestRegressor`."""
        return _sklearn("ensemble").RandomForestRegressor(self.trees, max_features="sqrt", random_state=seed)

    def scores(self, fitted: Any, rows: Array, classes: int) -> Array:
        """Logarithms of the smoothed votes."""
        return _smoothed(fitted.predict_proba(rows), self.trees, classes)


@dataclass(frozen=True)
class NearestEstimator(Estimator):
    """The nearest neighbours in standardised inputs.

    Attributes:
        neighbours: how many.

    Example:
        >>> from legibility.scores import NearestEstimator
        >>> NearestEstimator(neighbours=1).name
        'nearest'
    """

    neighbours: int = 5

    def classifier(self, seed: int) -> Any:
        """A `KNeighborsClassifier`."""
        return _Nearest(_sklearn("neighbors").KNeighborsClassifier, self.neighbours)

    def regressor(self, seed: int) -> Any:
        """A `KNeighborsRegressor`."""
        return _Nearest(_sklearn("neighbors").KNeighborsRegressor, self.neighbours)

    def scores(self, fitted: Any, rows: Array, classes: int) -> Array:
        """Logarithms of the smoothed votes."""
        return _smoothed(fitted.fitted.predict_proba(rows), fitted.fitted.n_neighbors, classes)


@dataclass(frozen=True)
class KernelEstimator(Estimator):
    """A kernel machine with a radial basis: a support-vector classifier for decisions, kernel ridge for shares.

    Attributes:
        penalty: of a mistake (`C`).

    Example:
        >>> from legibility.scores import KernelEstimator
        >>> KernelEstimator().name
        'kernel'
    """

    penalty: float = 10.0

    def classifier(self, seed: int) -> Any:
        """An `SVC`."""
        return _sklearn("svm").SVC(C=self.penalty, kernel="rbf", gamma="scale", decision_function_shape="ovr")

    def regressor(self, seed: int) -> Any:
        """A `KernelRidge`; rows are standardised, so that 1 / features is the scale of `SVC`."""
        return _sklearn("kernel_ridge").KernelRidge(alpha=1.0 / self.penalty, kernel="rbf")

    def scores(self, fitted: Any, rows: Array, classes: int) -> Array:
        """One number per class, from all pairs of classes."""
        found = fitted.decision_function(rows)
        return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else np.asarray(found)


@dataclass(frozen=True)
class TreeEstimator(Estimator):
    """One decision tree that a person could read.

    Attributes:
        leaves: how many at most.

    Example:
        >>> from legibility.scores import TreeEstimator
        >>> TreeEstimator(leaves=8).name
        'tree'
    """

    leaves: int = 32

    def classifier(self, seed: int) -> Any:
        """A `DecisionTreeClassifier`."""
        return _sklearn("tree").DecisionTreeClassifier(max_leaf_nodes=max(2, self.leaves), random_state=seed)

    def regressor(self, seed: int) -> Any:
        """A `DecisionTreeRegressor`."""
        return _sklearn("tree").DecisionTreeRegressor(max_leaf_nodes=max(2, self.leaves), random_state=seed)

    def scores(self, fitted: Any, rows: Array, classes: int) -> Array:
        """Logarithms of the smoothed shares in each row's leaf."""
        size = fitted.tree_.n_node_samples[fitted.apply(rows)]
        return _smoothed(fitted.predict_proba(rows), size[:, None], classes)


class _Nearest:
    """Neighbours, no more than there are rows."""

    def __init__(self, kind: Any, neighbours: int) -> None:
        self.kind, self.neighbours = kind, neighbours
        self.fitted: Any = None

    def fit(self, rows: Array, target: Array) -> "_Nearest":
        self.fitted = self.kind(min(self.neighbours, len(target))).fit(rows, target)
        self.classes_ = getattr(self.fitted, "classes_", None)
        return self

    def predict(self, rows: Array) -> Array:
        found: Array = self.fitted.predict(rows)
        return found


def default_estimators() -> list[Estimator]:
    """Forest, nearest neighbours, kernel machine and bounded tree, in their default settings.

    Example:
        >>> from legibility.scores import default_estimators
        >>> [family.name for family in default_estimators()]
        ['forest', 'nearest', 'kernel', 'tree']
    """
    return [ForestEstimator(), NearestEstimator(), KernelEstimator(), TreeEstimator()]


def _smoothed(shares: Array, voters: Any, classes: int) -> Array:
    """Logarithms of shares to which half a vote per class was added (Krichevsky and Trofimov)."""
    found: Array = np.log((voters * shares + 0.5) / (voters + classes / 2))
    return found


def _sklearn(module: str) -> Any:
    return optional(f"sklearn.{module}", ESTIMATORS)
