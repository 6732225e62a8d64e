"""Audit of the two headline scores of concepts through three lenses: reseed noise, known truth, discriminability.

    python benchmarks/audit_concept_scores.py [--seeds 6] [--permutations 50]

- reseed noise: the standard deviation of a score over training seeds of one arm, and over seeds of the score alone
  (splits, permutations, donors) for one model
- known truth: rank correlation and mean absolute error over constructed models. Used-given-encoded: six concepts in
  rotated activations, of which the head reads a random subset strongly; truth = its share. Disentanglement: four pairs
  of factors, each pair rotated by its own angle and drowned in its own noise; truth = the analytic D of the angles times
  the accuracy beyond chance of the best possible reader.
- discriminability: digits MLPs trained, trained with L1 on unit-variance activations, and untrained; the difference of
  arms in units of the seed noise within them (Cohen's d, paired by seed where arms share the initialisation)
- where they fail: the same arms asked about nested concepts, and activations that are noise

Prints tables in Markdown; docs/audit_concept_scores.md holds them. Needs scikit-learn and scipy.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import gated_disentanglement, used_given_encoded

CONCEPTS = 6


def known_use(seed: int, permutations: int) -> tuple[float, float, float]:
    """Truth, share and excess use of a head that reads a random subset of six concepts."""
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(2, (1000, CONCEPTS), generator=generator)
    noise = torch.randn(1000, 10, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    hidden = torch.cat([2.0 * concepts - 1, noise], 1) @ rotation.T
    read = torch.rand(CONCEPTS, generator=generator) < torch.rand((), generator=generator)
    if not bool(read.any()):
        read[0] = True
    weight = torch.zeros(16, 4)
    weight[:CONCEPTS] = read.unsqueeze(1) * torch.randn(CONCEPTS, 4, generator=generator) * 2

    def rest(activations: Tensor) -> Tensor:
        return activations @ rotation @ weight

    found = used_given_encoded(hidden, concepts, rest, permutations=permutations, seed=seed)
    return float(read.double().mean()), found.share, found.excess_use


def known_disentanglement(seed: int) -> tuple[float, float]:
    """Truth and score of four pairs of signs, rotated and noisy."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (1500, 8), generator=generator)
    angles = torch.rand(4, generator=generator) * torch.rand((), generator=generator) * math.pi / 4
    deviation = 0.05 + 3 * float(torch.rand((), generator=generator)) ** 3
    units, truths = [], []
    for pair, angle in enumerate(angles.tolist()):
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        units.append((2.0 * signs[:, 2 * pair : 2 * pair + 2] - 1) @ turn)
        share = math.cos(angle) / (math.cos(angle) + math.sin(angle))
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        # Of eight factors a unit speaks of two: H to the base 8.
        truths.append(1 - entropy / 3)
    hidden = torch.cat(units, 1)
    hidden = hidden + deviation * torch.randn(hidden.shape, generator=generator)
    # The best reader of a sign in Gaussian noise is right with probability Phi(1 / deviation).
    correct = 0.5 * (1 + math.erf(1 / deviation / math.sqrt(2)))
    truth = statistics.mean(truths) * (2 * correct - 1)
    return truth, gated_disentanglement(hidden, signs, permutations=2, seed=seed).score


Arm = tuple[Tensor, Callable[[Tensor], Tensor]]


def digits_arms(seed: int, inputs: Tensor, labels: Tensor) -> dict[str, Arm]:
    """Hidden layer and head of the same network untrained, trained, and trained with L1 on its activations."""
    arms: dict[str, Arm] = {}
    for name, strength in (("untrained", None), ("trained", 0.0), ("trained + L1", 0.1)):
        torch.manual_seed(seed)
        body, head = nn.Sequential(nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 10)
        if strength is not None:
            optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
            for _ in range(40):
                for rows in torch.split(torch.randperm(len(inputs)), 64):
                    hidden = body(inputs[rows])
                    unit = hidden / hidden.square().mean(0).sqrt().clamp(min=1e-3)
                    loss = functional.cross_entropy(head(hidden), labels[rows]) + strength * unit.mean()
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
        arms[name] = (body(inputs).detach(), head)
    hidden, head = arms["untrained"]
    arms["untrained x 6"] = (hidden, lambda activations: 6 * head(activations))
    return arms


Scores = dict[str, float]


def measured(arm: Arm, concepts: Tensor, permutations: int, seed: int = 0) -> Scores:
    """Both headline scores of an arm, and what the first is made of."""
    use = used_given_encoded(arm[0], concepts, arm[1], permutations=permutations, seed=seed)
    knot = gated_disentanglement(arm[0], concepts, permutations=2, seed=seed)
    return {
        "used-given-encoded": use.score,
        "its share": use.share,
        "its excess use": use.excess_use,
        "gated disentanglement": knot.score,
    }


def of_noise(seed: int, positions: int) -> float:
    """Disentanglement of activations that say nothing about ten concepts."""
    generator = torch.Generator().manual_seed(seed)
    concepts = functional.one_hot(torch.randint(10, (positions,), generator=generator), 10)
    return gated_disentanglement(torch.randn(positions, 32, generator=generator), concepts, permutations=2).score


def spread(values: list[float]) -> str:
    """Mean and standard deviation of those that exist."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return "none"
    return f"{statistics.mean(finite):.3f} +- {statistics.stdev(finite):.3f}"


def effect(first: list[float], second: list[float]) -> str:
    """Cohen's d of two arms."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 2:
        return "one has none"
    noise = math.sqrt(sum(statistics.variance(values) for values in zip(*pairs, strict=True)) / 2)
    difference = statistics.mean(a - b for a, b in pairs)
    return f"{difference / noise:+.1f}" if noise > 0 else f"{difference:+.3f} without noise"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--permutations", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()

    print(
        "### Known truth\n\n| score | models | rank correlation | mean error | mean absolute error |\n|---|---|---|---|---|"
    )
    uses = [known_use(seed, options.permutations) for seed in range(5 * options.seeds)]
    knots = [known_disentanglement(seed) for seed in range(5 * options.seeds)]
    tables = {
        "share of used concepts": [(truth, share) for truth, share, _ in uses],
        "excess use": [(truth, excess) for truth, _, excess in uses],
        "gated disentanglement": knots,
    }
    for name, pairs in tables.items():
        truth, found = zip(*pairs, strict=True)
        bias, error = statistics.mean(b - a for a, b in pairs), statistics.mean(abs(a - b) for a, b in pairs)
        rank = spearmanr(truth, found).statistic
        print(f"| {name} | {len(pairs)} | {rank:.3f} | {bias:+.3f} | {error:.3f} |")

    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[:900]
    inputs, labels = torch.tensor(data.data / 16.0).float()[order], torch.tensor(data.target)[order]
    concepts, nested = functional.one_hot(labels, 10), torch.stack([labels, labels % 2, (labels >= 5).long()], 1)
    scores: dict[str, dict[str, list[float]]] = {}
    scores_of_nested: dict[str, dict[str, list[float]]] = {}
    again: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, arm in digits_arms(seed, inputs, labels).items():
            for kept, given in ((scores, concepts), (scores_of_nested, nested)):
                for score, value in measured(arm, given, options.permutations).items():
                    kept.setdefault(score, {}).setdefault(name, []).append(value)
            if seed == 0 and name == "trained":
                for other in range(options.seeds):
                    for score, value in measured(arm, concepts, options.permutations, other).items():
                        again.setdefault(score, []).append(value)

    print("\n### Reseed noise: mean +- standard deviation\n")
    arms = list(next(iter(scores.values())))
    print("| score |", " | ".join(arms), "| one trained model, other seeds of the score |")
    print("|---" * (len(arms) + 2) + "|")
    for name, by_arm in scores.items():
        print(f"| {name} |", " | ".join(spread(by_arm[arm]) for arm in arms), f"| {spread(again[name])} |")

    print("\n### Nested concepts: the digit, its parity, at least 5\n")
    print("| score |", " | ".join(arms), "|\n|---" + "|---" * len(arms) + "|")
    for name, by_arm in scores_of_nested.items():
        print(f"| {name} |", " | ".join(spread(by_arm[arm]) for arm in arms), "|")
    untrained, trained = (scores_of_nested["gated disentanglement"][arm] for arm in ("untrained", "trained"))
    print(f"\nUntrained the more disentangled in {sum(a > b for a, b in zip(untrained, trained, strict=True))} seeds.")
    highest = max(of_noise(seed, positions) for seed in range(options.seeds) for positions in (300, 1797))
    print(f"The highest disentanglement of noise, 300 and 1797 positions: {highest:.3f}")

    print("\n### Discriminability: difference of arms in units of their seed noise\n")
    print("| score | trained - untrained | trained - untrained x 6 | L1 - trained |\n|---|---|---|---|")
    for name, by_arm in scores.items():
        trained = by_arm["trained"]
        print(
            f"| {name} | {effect(trained, by_arm['untrained'])} | {effect(trained, by_arm['untrained x 6'])} "
            f"| {effect(by_arm['trained + L1'], trained)} |"
        )
    print(
        f"\n{options.seeds} seeds, {options.permutations} permutations, {time.process_time() - started:.0f} s of CPU."
    )


if __name__ == "__main__":
    main()
