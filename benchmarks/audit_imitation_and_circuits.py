"""Three questions to each headline score, on models whose truth is known because they were built for it.

    python benchmarks/audit_imitation_and_circuits.py [--seeds 5] [--out docs]

- Reseed noise: how far does the value move when only the training seed (data, weights, order) changes?
- Truth: does it follow the dial that was turned? Spearman's rank correlation over all models.
- Discriminability: of two models one step of the dial apart, from any seeds, how often does it order them rightly?
  (1/2 is chance; the lowest of all steps is printed too.)

Dials: the share of labels that are random (imitation saving); the share of errors that follow a rule, here and on inputs
from another distribution, and of errors that do so here the share that keeps to it there (error predictability); the
number of hidden units that do the work, planted among idle ones, and the number of features that matter in ordinary
training (circuit and compressed size). A second table holds nets with and without training. Draws a picture.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import (
    ForestEstimator,
    KernelEstimator,
    NearestEstimator,
    Queries,
    compressed_size,
    error_predictability,
    faithful_circuit,
    held_out_imitation,
    held_out_twin,
    imitation_saving,
)

FAMILIES = [ForestEstimator(50), NearestEstimator(), KernelEstimator()]
ROWS, FEATURES = 1000, 16
Values = dict[str, float]


def layers(classes: int) -> nn.Sequential:
    """A net of two hidden layers."""
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, learning_rate: float = 5e-3) -> nn.Module:
    """The model, trained on all of it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten()))
        optimizer.step()
    return model.eval()


def fitted(inputs: Tensor, labels: Tensor, classes: int, seed: int, steps: int) -> nn.Module:
    """The net of a seed, trained."""
    torch.manual_seed(seed)
    return trained(layers(classes), inputs, labels, steps)


def clusters(seed: int, *, shifted: bool = False) -> tuple[Tensor, Tensor]:
    """Eight clouds in four classes; shifted: of the same centres, but half as wide again."""
    draw = torch.Generator().manual_seed(1000 + seed)
    centres = torch.randn(8, FEATURES, generator=draw) * 1.2
    if shifted:
        draw.manual_seed(2000 + seed)
    which = torch.randint(0, 8, (ROWS,), generator=draw)
    return centres[which] + torch.randn(ROWS, FEATURES, generator=draw) * (1.5 if shifted else 1.0), which % 4


def random_labels(share: float, seed: int) -> Values:
    """A net that learnt a share of random labels by heart."""
    inputs, labels = clusters(seed)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 4, (ROWS,), generator=draw)
    given = torch.where(torch.rand(ROWS, generator=draw) < share, noise, labels)
    return savings(fitted(inputs, given, 4, seed, 300), inputs, labels)


def savings(model: nn.Module, inputs: Tensor, labels: Tensor) -> Values:
    """How easily its decisions are learnt."""
    queries = Queries(inputs, model(inputs).detach(), labels)
    found = imitation_saving(held_out_imitation(queries, FAMILIES, twin=held_out_twin(queries, FAMILIES)))
    return {"imitation saving, dS": found.median, "imitation saving, S": found.plain_median}


def erring(inputs: Tensor, labels: Tensor, ruled: Tensor, random: float, draw: torch.Generator) -> Queries:
    """Of a primary that says the next class where `ruled`, and any wrong one in a share `random` of the rest."""
    anyhow = torch.rand(ROWS, generator=draw) < random
    other = (labels + torch.randint(1, 4, (ROWS,), generator=draw)) % 4
    top = torch.where(ruled, (labels + 1) % 4, torch.where(anyhow, other, labels))
    return Queries(inputs, functional.one_hot(top, 4).float() * 5, labels)


def foreseen(queries: Queries, shifted: Queries | None = None) -> float:
    """The median family's error predictability."""
    found = error_predictability(queries, FAMILIES, shifted=shifted)
    return statistics.median(each.value for each in found.values())


def ruled_errors(share: float, seed: int) -> Values:
    """A primary wrong in 30 %, a share of them by a rule: where one feature is large. It is the same one elsewhere."""
    (inputs, labels), (far, far_labels) = clusters(seed), clusters(seed, shifted=True)
    draw = torch.Generator().manual_seed(seed)
    large, random = inputs[:, 0].quantile(1 - 0.3 * share), 0.3 * (1 - share) / (1 - 0.3 * share)
    queries = erring(inputs, labels, inputs[:, 0] >= large, random, draw)
    shifted = erring(far, far_labels, far[:, 0] >= large, random, draw)
    return {"error predictability": foreseen(queries), "error predictability, shifted": foreseen(queries, shifted)}


def kept_rule(share: float, seed: int) -> Values:
    """A primary whose errors all follow the rule here, and elsewhere a share of them; as many others are random there."""
    (inputs, labels), (far, far_labels) = clusters(seed), clusters(seed, shifted=True)
    draw = torch.Generator().manual_seed(seed)
    large = inputs[:, 0].quantile(0.7)
    queries = erring(inputs, labels, inputs[:, 0] >= large, 0.0, draw)
    there = far[:, 0] >= large
    kept = there & (torch.rand(ROWS, generator=draw) < share)
    shifted = erring(far, far_labels, kept, int((there & ~kept).sum()) / int((~kept).sum()), draw)
    return {"error predictability, shifted": foreseen(queries, shifted)}


def relevant_features(count: float, seed: int) -> Values:
    """A net that learnt which fourth part of `count` features has the largest sum."""
    inputs = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1000 + seed))
    labels = inputs[:, : int(count)].view(ROWS, 4, -1).sum(-1).argmax(1)
    model = fitted(inputs, labels, 4, seed, 150)
    return sizes(model, inputs, labels)


def working_units(count: float, seed: int) -> Values:
    """A net of `count` hidden units among others, 64 in all, that see as much and are hardly listened to."""
    inputs, labels = clusters(seed)
    torch.manual_seed(seed)
    small, model = (
        nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, 4)) for width in (int(count), 64)
    )
    trained(small, inputs, labels, 150, 1e-2)
    places = torch.randperm(64)[: int(count)]
    (read, _, said), (wide, _, out) = small, model
    with torch.no_grad():
        out.weight.mul_(0.02)
        wide.weight[places], wide.bias[places] = read.weight, read.bias
        out.weight[:, places] = said.weight
        out.bias.copy_(said.bias)
    return sizes(model, inputs, labels)


def sizes(model: nn.Module, inputs: Tensor, labels: Tensor) -> Values:
    """What a circuit and a code of the weights take."""
    share = compressed_size(model, inputs, labels, tolerance=0.02).share
    return circuits(model, inputs) | {"compressed size": share}


def circuits(model: nn.Module, inputs: Tensor) -> Values:
    """What circuits take."""
    nodes, edges = (faithful_circuit(model, inputs, granularity=parts) for parts in ("nodes", "edges"))
    return {
        "circuit, nodes at .9": nodes.size_90,
        "circuit, nodes at .9, learned": nodes.learned_90,
        "circuit, edges at .9": edges.size_90,
        "circuit, edges at .9, learned": edges.learned_90,
    }


class Tied(nn.Module):
    """The next of twelve tokens from the last two, its head tied to an embedding that PyTorch draws from N(0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 32), nn.Linear(32, 12, bias=False)
        self.mix = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, 12)."""
        now = self.embed(ids)
        before = functional.pad(now, (0, 0, 1, 0))[:, :-1]
        said: Tensor = self.head(now + self.mix(torch.cat([before, now], -1)))
        return said


def language(seed: int) -> tuple[Tensor, Tensor]:
    """A hundred sentences in which two tokens decide the odds of the next."""
    draw = torch.Generator().manual_seed(1000 + seed)
    rule = (torch.randn(12, 12, 12, generator=draw) * 2).softmax(-1)
    said = torch.randint(0, 12, (100, 2), generator=draw)
    for _ in range(9):
        said = torch.cat([said, rule[said[:, -2], said[:, -1]].multinomial(1, generator=draw)], 1)
    return said[:, :-1], said[:, 1:]


def with_and_without_training(seed: int) -> dict[str, Values]:
    """What the scores say of a net that has learnt nothing: quiet answers, and loud ones."""
    found = {}
    for name, (inputs, labels), build in (
        ("MLP", clusters(seed), lambda: layers(4)),
        ("tied language model", language(seed), Tied),
    ):
        for steps in (0, 300):
            torch.manual_seed(seed)
            model = trained(build(), inputs, labels, steps)
            values = savings(model, inputs, labels)
            found[f"{name}, {'trained' if steps else 'untrained'}"] = values | circuits(model, inputs)
    return found


# Which way each value should go as the dial goes up.
Dial = tuple[str, Sequence[float], int, Callable[[float, int], Values]]
DIALS: list[Dial] = [
    ("share of random labels", (0.0, 0.2, 0.4, 0.6), -1, random_labels),
    ("share of errors by a rule", (0.0, 0.33, 0.67, 1.0), 1, ruled_errors),
    ("share of these that keep to it elsewhere", (0.0, 0.33, 0.67, 1.0), 1, kept_rule),
    ("units that do the work", (4, 8, 16, 32), 1, working_units),
    ("features that matter", (4, 8, 12, 16), 1, relevant_features),
]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, where there are values."""
    if any(math.isnan(value) for value in values):
        return "none"
    return f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})"


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties averaged."""
    ranks = []
    for values in (first, second):
        column = torch.tensor(values, dtype=torch.float64)
        ranks.append((column[:, None] > column).double().sum(1) + 0.5 * (column[:, None] == column).double().sum(1))
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def ordered(lower: Sequence[float], higher: Sequence[float]) -> float:
    """How often a value of the second is the larger, ties half."""
    return statistics.mean((b > a) + 0.5 * (a == b) for a in lower for b in higher)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| score | dial | value at each step, mean (SD over seeds) | noise / range | Spearman | ordered | worst step |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    panels = []
    for dial, steps, sign, build in DIALS:
        found: dict[str, list[list[float]]] = {}
        for step in steps:
            started = time.perf_counter()
            rows = [build(step, seed) for seed in range(options.seeds)]
            print(f"{dial} {step}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            for name in rows[0]:
                found.setdefault(name, []).append([row[name] for row in rows])
        for name, groups in found.items():
            panels.append((name, dial, steps, groups))
            means = [statistics.mean(group) for group in groups]
            noise = math.sqrt(statistics.mean(statistics.variance(group) for group in groups))
            noise /= max(means) - min(means)
            truth = [sign * step for step, group in zip(steps, groups, strict=True) for _ in group]
            rho = spearman(truth, [value for group in groups for value in group])
            pairs = [ordered(a, b) if sign > 0 else ordered(b, a) for a, b in itertools.pairwise(groups)]
            cells = ", ".join(spread(group) for group in groups)
            lines.append(
                f"| {name} | {dial} {', '.join(f'{step:g}' for step in steps)} | {cells} | {noise:.2f} | {rho:.2f} "
                f"| {statistics.mean(pairs):.2f} | {min(pairs):.2f} |"
            )
    print("\n".join(lines))
    tables = [with_and_without_training(seed) for seed in range(options.seeds)]
    print(
        "\n| model |", " | ".join(tables[0]["MLP, trained"]), "|\n|---" + "|---" * len(tables[0]["MLP, trained"]) + "|"
    )
    for model, values in tables[0].items():
        cells = [[table[model][name] for table in tables] for name in values]
        print(f"| {model} |", " | ".join(spread(cell) for cell in cells), "|")
    draw(panels, options.out / "audit_imitation_and_circuits.png")


def draw(panels: Sequence[tuple[str, str, Sequence[float], list[list[float]]]], path: Path) -> None:
    """One small picture per score: the dial across, every seed a dot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 5, figsize=(15, 8))
    for axis, (name, dial, steps, groups) in zip(axes.flat, panels, strict=False):
        for step, group in zip(steps, groups, strict=True):
            axis.plot([step] * len(group), group, "o", color="#3b6ea5", alpha=0.6, markersize=4)
        axis.plot(steps, [statistics.mean(group) for group in groups], color="#3b6ea5")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(dial, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
