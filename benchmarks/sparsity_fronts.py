"""Task loss against exact zeros, method by method, over recipes: the picture and the tables of the sparsity recipes.

    python benchmarks/sparsity_fronts.py runs/sparsity_lm runs/sparsity_pat_lm --picture docs/sparsity-lm.png

Reads the run records under the folders. An arm `method-strength` is one point of its method; arms without zeros are lines.
The second table reads each seed's points of a method along straight lines between them, at fixed shares of zeros
(nothing is extrapolated), so methods are compared at equal zeros, paired by seed: mean difference from `--against` with
its 95 % t interval.
"""

import argparse
import itertools
import re
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib import pyplot
from scipy.stats import t as student

from legibility.tradeoff import RunRecord, load_record

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
Point = tuple[float, float]  # zeros, loss


def zeros_of(record: RunRecord) -> float:
    """Share of exact zeros."""
    return next(entry.value or 0.0 for entry in record.scores if entry.name == "exact_zero_share")


def read(folders: list[Path]) -> dict[str, dict[int, Point]]:
    """Arm -> seed -> zeros and loss."""
    found: dict[str, dict[int, Point]] = defaultdict(dict)
    for folder in folders:
        for path in sorted(folder.rglob("record.json")):
            record = load_record(path)
            if record.seed is not None and record.task.loss is not None:
                found[record.arm][record.seed] = (zeros_of(record), record.task.loss)
    return found


def spread(values: list[float], digits: int = 3) -> str:
    """Mean +- standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def at(points: list[Point], share: float) -> float | None:
    """Loss at a share of zeros, along straight lines; None outside of the points."""
    points = sorted(points)
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= share <= right and right > left:
            return low + (high - low) * (share - left) / (right - left)
    return None


def main() -> None:
    """Prints tables and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--against", default="pat")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--title", default="")
    parser.add_argument("--minus", help="draw the change against this arm of the same seed")
    parser.add_argument("--top", type=float, help="highest loss that is drawn")
    options = parser.parse_args()
    arms = read(options.folders)
    methods: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        methods[re.sub(r"-[0-9.e-]+$", "", arm)].append(arm)

    print("| arm | seeds | loss | exact zeros |\n|---|---|---|---|")
    for arm, seeds in arms.items():
        losses, shares = [p[1] for p in seeds.values()], [p[0] for p in seeds.values()]
        print(f"| {arm} | {len(seeds)} | {spread(losses)} | {spread(shares)} |")

    by_seed: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for method, names in methods.items():
        for arm in names:
            for seed, point in arms[arm].items():
                by_seed[method][seed].append(point)
    print("\n| method | " + " | ".join(f"{share:.0%} zeros" for share in SHARES) + " |")
    print("|---" * (1 + len(SHARES)) + "|")
    for method, seeds_of in by_seed.items():
        cells = []
        for share in SHARES:
            own = {seed: at(points, share) for seed, points in seeds_of.items()}
            rival = {seed: at(points, share) for seed, points in by_seed[options.against].items()}
            values = [value for value in own.values() if value is not None]
            pairs = [a - b for seed, a in own.items() if a is not None and (b := rival.get(seed)) is not None]
            cell = f"{statistics.mean(values):.3f} (n {len(values)})" if values else ""
            if len(pairs) > 1 and method != options.against:
                half = student.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
                cell += f"; {statistics.mean(pairs):+.3f} +- {half:.3f}"
            cells.append(cell)
        if any(cells):
            print(f"| {method} | " + " | ".join(cells) + " |")
    if options.picture is not None:
        if options.minus is not None:
            base = arms[options.minus]
            arms = {
                arm: {seed: (zeros, loss - base[seed][1]) for seed, (zeros, loss) in seeds.items() if seed in base}
                for arm, seeds in arms.items()
            }
        label = (
            "task loss, nats (lower is better)" if options.minus is None else f"task loss minus that of {options.minus}"
        )
        draw(arms, methods, options.picture, options.title, label, options.top)


def draw(
    arms: dict[str, dict[int, Point]],
    methods: dict[str, list[str]],
    path: Path,
    title: str,
    label: str,
    top: float | None,
) -> None:
    """Means with standard errors, one line for each method."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    colours, marks = pyplot.colormaps["tab10"].colors, "osD^vP*X<>"  # type: ignore[attr-defined]
    number = 0
    for method, names in methods.items():
        points = [
            [statistics.mean(c) for c in zip(*arms[arm].values(), strict=True)]
            + [
                statistics.stdev(c) / len(c) ** 0.5 if len(c) > 1 else 0.0
                for c in zip(*arms[arm].values(), strict=True)
            ]
            for arm in names
        ]
        if len(names) == 1:
            style = "--" if method == "plain" else ":"
            axes.axhline(points[0][1], color="black", linestyle=style, linewidth=1, label=method)
            continue
        points.sort()
        zeros, losses, wide, high = zip(*points, strict=True)
        axes.errorbar(
            zeros, losses, high, wide, label=method, color=colours[number % 10], marker=marks[number % 10],
            markersize=5, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
        number += 1
    if top is not None:
        axes.set_ylim(top=top)
    axes.set(xlabel="exact zeros, share of the weights", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
