"""How often is a difference called where the score depends on task loss alone, and do the intervals cover the truth?

Three families of simulated experiments, all with noise in score and loss:

- two methods at equal task loss (`matched_difference`): on a straight front and on one that falls twentyfold, with 3 to 6
  strengths; false calls where there is no difference (nominal .05), coverage of the 95 % intervals where there is one;
- many arms against a baseline (`judge`, what the report calls a gain): six arms in four scores, with and without controls;
- four methods in four scores (`compare_at_matched_loss`): false calls anywhere in the family, which Holm holds at .05.

    python benchmarks/matched_loss.py                 # about 10 minutes on an idle thread
    python benchmarks/matched_loss.py --times 0.1     # a tenth of the experiments

Measured, 2,000 experiments a line: where nothing is to be found some gain is called in at most .001 of the comparisons
without controls and .029 with (by each interval for itself, up to .99 and .47); two methods at equal loss are told apart in
.016 to .042, their intervals cover .943 to .951 with 4 and 6 strengths, .875 to .961 with 3.
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence

from legibility.tradeoff import (
    ControlOf,
    CostEntry,
    Metric,
    RunRecord,
    ScoreEntry,
    Section,
    TaskEntry,
    compare,
    estimate,
    judge,
)
from legibility.tradeoff.statistics import (
    Curve,
    Match,
    Point,
    compare_at_matched_loss,
    matched_difference,
    t_test,
)

KL = Metric("score", "held_out_kl", "nats", "lower", "nats")
SCORES = ("held_out_kl", "code_length", "disagreement", "patch_through_kl")
SEEDS = (3, 5, 8)
GRIDS = {
    3: ((1.0, 1.15, 1.3), (1.1, 1.25, 1.5)),
    4: ((1.0, 1.1, 1.2, 1.3), (1.1, 1.2, 1.3, 1.5)),
    6: ((1.0, 1.06, 1.12, 1.18, 1.24, 1.3), (1.1, 1.18, 1.26, 1.34, 1.42, 1.5)),
}


def line(loss: float) -> float:
    return 2.0 - 3.0 * loss


def bent(loss: float) -> float:
    """Falls twentyfold from loss 1 to 1.5."""
    return math.exp(-6.0 * (loss - 1.0))


def match(rng: random.Random, shape: Callable[[float], float], strengths: int, seeds: int, gap: float) -> Match:
    """Two methods on one front, the first lower by `gap`; a seed shifts the losses of both alike."""

    def strand(grid: Sequence[float], shift: float, lower: float) -> tuple[Point, ...]:
        there = sorted(loss + rng.gauss(0, 0.01) for loss in grid)
        return tuple(Point(loss + shift, shape(loss) - lower + rng.gauss(0, 0.02)) for loss in there)

    shifts = [rng.gauss(0, 0.05) for _ in range(seeds)]
    mine, theirs = GRIDS[strengths]
    one = {seed: strand(mine, shift, gap) for seed, shift in enumerate(shifts)}
    other = {seed: strand(theirs, shift, 0.0) for seed, shift in enumerate(shifts)}
    return matched_difference(KL, Curve("a", one), Curve("b", other))


def equal_loss(count: int) -> Iterator[str]:
    for shape in (line, bent):
        for strengths in GRIDS:
            for seeds in SEEDS:
                rng = random.Random(seeds)
                null = [match(rng, shape, strengths, seeds, 0.0) for _ in range(count)]
                called = sum(one.outcome in ("better", "worse") for one in null) / count
                found = [match(rng, shape, strengths, seeds, 0.05).difference for _ in range(count)]
                ends = [(one.low, one.high) for one in found if one is not None]
                cover = sum(a <= -0.05 <= b for a, b in ends if a is not None and b is not None) / count
                naive = sum(_naive(rng, shape, strengths, seeds) < 0.05 for _ in range(count)) / count
                yield (
                    f"{shape.__name__}, {strengths} strengths, {seeds} seeds: called {called:.3f}, covered {cover:.3f};"
                    f" without looking at the loss: called {naive:.2f}"
                )


def _naive(rng: random.Random, shape: Callable[[float], float], strengths: int, seeds: int) -> float:
    mine, theirs = GRIDS[strengths]
    means = [[math.fsum(shape(x) + rng.gauss(0, 0.02) for x in grid) for grid in (mine, theirs)] for _ in range(seeds)]
    return t_test(estimate({seed: a - b for seed, (a, b) in enumerate(means)})) or 0.0


def run(rng: random.Random, arm: str, seed: int, loss: float, score: float, noise: float, **more: object) -> RunRecord:
    entries = [
        ScoreEntry(name, score + rng.gauss(0, 0.03), "nats", "lower", None, None, trained_on=False) for name in SCORES
    ]
    task = TaskEntry("cross-entropy", loss + rng.gauss(0, noise), None, None, 100, "validation")
    cost = CostEntry(None, None, None, None, None, {}, 1)
    return RunRecord(arm, seed, "simulated", {}, [], task, entries, cost, {}, **more)  # type: ignore[arg-type]


def arms(rng: random.Random, seeds: int, paid: float, gain: float, controls: bool) -> Section:
    """Six arms that pay up to `paid` of a loss of 2, scores lower by 3 for each unit of it, and by `gain` beyond."""
    runs = []
    for seed in range(seeds):
        runs.append(run(rng, "plain", seed, 2.0, 2.0, 0.03))
        for place, arm in enumerate("abcdef"):
            way = paid * (place + 1) / 6
            runs.append(run(rng, arm, seed, 2 + way, 2 - 3 * way - gain, 0.03))
            if controls:
                goal = runs[-1].task.loss or 0.0
                role = ControlOf("temperature", "plain", arm, 1.1)
                runs.append(run(rng, f"warm-{arm}", seed, goal, 2 - 3 * way, 0.0, control_of=role))
    return compare(runs).sections[0]


def gains(count: int) -> Iterator[str]:
    for controls, gain in ((False, 0.0), (True, 0.0), (True, 0.1)):
        for paid in (0.0, 0.02, 0.1, 0.5):
            for seeds in SEEDS:
                rng = random.Random(seeds)
                some, alone, cells = 0, 0, 0
                for _ in range(count):
                    section = arms(rng, seeds, paid, gain, controls)
                    found = [judge(section, section.arm(arm), one) for arm in "abcdef" for one in section.headlines]
                    some += "gain" in found
                    alone += any(_alone(section, arm, metric) for arm in "abcdef" for metric in section.headlines)
                    cells += found.count("gain")
                yield (
                    f"{'with' if controls else 'without'} controls, truly better by {gain}, paid up to {paid}, {seeds} seeds:"
                    f" some gain in {some / count:.3f}, by intervals alone in {alone / count:.2f};"
                    f" {cells / count / 24:.3f} of cells"
                )


def _alone(section: Section, arm: str, metric: Metric) -> bool:
    """Each interval for itself, and a loss "within seed noise" for an equal one."""
    outcome, loss = judge(section, section.arm(arm), metric), section.arm(arm).cells[section.task_loss].change
    return outcome in ("gain", "unsure") or (outcome == "unmatched" and loss is not None and loss.sign == 0)


def families(count: int) -> Iterator[str]:
    for seeds in SEEDS:
        rng = random.Random(seeds)
        some = 0
        for _ in range(count):
            runs = []
            for seed in range(seeds):
                runs.append(run(rng, "plain", seed, 1.0, 2.0, 0.01))
                for place, method in enumerate("abcd"):
                    for strength in range(1, 5):
                        way = 0.1 * strength + 0.02 * place
                        runs.append(run(rng, f"{method}-{strength}", seed, 1 + way, 2 - 3 * way, 0.01))
            found = compare_at_matched_loss(compare(runs).sections[0])
            some += any(one.outcome in ("better", "worse") for one in found)
        yield f"four methods, four scores, {seeds} seeds: some difference called in {some / count:.3f} of the families"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=float, default=1.0, help="of the experiments")
    times = parser.parse_args().times
    for kind, count in ((gains, 2000), (equal_loss, 2000), (families, 500)):
        for text in kind(max(1, round(count * times))):
            print(text, flush=True)


if __name__ == "__main__":
    main()
