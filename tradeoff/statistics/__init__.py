"""What many runs say together, as plain functions over small tables.

- the table: `Point`, `Curve`, `curves` (a section's methods in one score), `method_of`
- equal task loss: `compare_at_matched_loss` (all methods, all headlines, Holm), `matched_difference` (two curves), `Match`
- what is reached: `pareto_front`, `attainment`, `hypervolume`; `fronts` for all methods of a section
- do scores agree: `spearman`, `rank_correlations`
- how sure: `t_test`, `holm`, `smallest_sign_flip_p`
"""

from legibility.tradeoff.statistics._curves import Curve as Curve
from legibility.tradeoff.statistics._curves import Point as Point
from legibility.tradeoff.statistics._curves import curves as curves
from legibility.tradeoff.statistics._curves import method_of as method_of
from legibility.tradeoff.statistics._fronts import Fronts as Fronts
from legibility.tradeoff.statistics._fronts import MethodFront as MethodFront
from legibility.tradeoff.statistics._fronts import attainment as attainment
from legibility.tradeoff.statistics._fronts import fronts as fronts
from legibility.tradeoff.statistics._fronts import hypervolume as hypervolume
from legibility.tradeoff.statistics._fronts import pareto_front as pareto_front
from legibility.tradeoff.statistics._matched import Match as Match
from legibility.tradeoff.statistics._matched import MatchedOutcome as MatchedOutcome
from legibility.tradeoff.statistics._matched import compare_at_matched_loss as compare_at_matched_loss
from legibility.tradeoff.statistics._matched import matched_difference as matched_difference
from legibility.tradeoff.statistics._ranks import RankCorrelation as RankCorrelation
from legibility.tradeoff.statistics._ranks import rank_correlations as rank_correlations
from legibility.tradeoff.statistics._ranks import spearman as spearman
from legibility.tradeoff.statistics._significance import holm as holm
from legibility.tradeoff.statistics._significance import smallest_sign_flip_p as smallest_sign_flip_p
from legibility.tradeoff.statistics._significance import t_test as t_test

__all__ = [
    "Curve",
    "Fronts",
    "Match",
    "MatchedOutcome",
    "MethodFront",
    "Point",
    "RankCorrelation",
    "attainment",
    "compare_at_matched_loss",
    "curves",
    "fronts",
    "holm",
    "hypervolume",
    "matched_difference",
    "method_of",
    "pareto_front",
    "rank_correlations",
    "smallest_sign_flip_p",
    "spearman",
    "t_test",
]
