"""What comparing many runs costs: time and memory of each part of `legibility compare`, for a folder of records.

    python benchmarks/compare_scale.py [--runs 1000] [--seeds 8]

Writes that many run records, of the size that a language-model recipe writes (35 scores, of which 9 for each of four
families), into a temporary folder: methods of five strengths, each with a temperature control. Then reads, compares,
prints and writes the page. Printed are CPU time (which a busy machine does not stretch), wall time and peak memory of
this process; the parts in brackets are within others. The target is 10 s and 1 GB for 1,000 runs;
measured: 2.2 s of CPU (reading .5, comparing .4, printing .6, the page .7), 117 MiB.
"""

import argparse
import io
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from legibility.tradeoff import (
    ControlOf,
    CostEntry,
    RunRecord,
    ScoreEntry,
    TaskEntry,
    compare,
    print_comparison,
    read_records,
    save_record,
    verdicts,
    write_html,
)
from legibility.tradeoff.statistics import compare_at_matched_loss, fronts, rank_correlations

SCORES = ("held_out_kl", "relative_kl", "disagreement", "code_length", "imitation_saving", "adjusted_saving")
MORE = ("fvu", "patch_through_kl", "exact_zero_share")
Result = TypeVar("Result")
FAMILIES = ("transformer", "lstm", "gated_conv", "ngram")


def record(arm: str, seed: int, strength: float, control: ControlOf | None, rng: random.Random) -> RunRecord:
    """A run whose scores fall as its loss rises, with noise."""
    loss = 2.0 + 0.05 * strength + 0.02 * seed + rng.gauss(0, 0.005)

    def score(name: str, family: str | None) -> ScoreEntry:
        direction = "higher" if name.endswith(("saving", "share")) else "lower"
        value = abs((1.5 - 0.1 * strength if direction == "lower" else 0.1 * strength) + rng.gauss(0, 0.02))
        unit = "share" if name.endswith(("saving", "share", "disagreement")) else "nats"
        return ScoreEntry(name, value, unit, direction, 2 * value, "random-init", False, family)  # type: ignore[arg-type]

    return RunRecord(
        arm,
        seed,
        "demo",
        {} if control or arm == "plain" else {"term": strength},
        ["conv", "gru"],
        TaskEntry("cross-entropy", loss, 0.6, 1.7, 65536, "validation"),
        [*(score(name, None) for name in SCORES + MORE), *(score(n, f) for f in FAMILIES for n in SCORES)],
        CostEntry(100.0, 1800, 0.05, 20.0, 10**9, {"StudentLegibility": 0.01}, 10**6),
        {"torch": "2.13.0"},
        control,
        {"queries": 2048, "hparams": {"width": 128, "lr": 0.002}},
        {f"rank/{tap}": rng.random() for tap in ("blocks.0", "blocks.1", "blocks.2")},
    )


def arms(count: int) -> list[tuple[str, float, ControlOf | None]]:
    """Plain, then methods of five strengths, each strength with its temperature control."""
    result: list[tuple[str, float, ControlOf | None]] = [("plain", 0.0, None)]
    method = 0
    while len(result) < count:
        method += 1
        for strength in (1, 2, 3, 4, 5):
            name = f"method{method}-{strength}"
            result.append((name, float(strength), None))
            result.append((f"warm-{name}", float(strength), ControlOf("temperature", "plain", name, 1 + strength / 10)))
    return result[:count]


def main() -> None:
    """Prints one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=8)
    chosen = parser.parse_args()
    rng = random.Random(0)
    cpu, wall = [0.0], [0.0]

    def timed(what: str, call: Callable[[], Result]) -> Result:
        before, start = time.process_time(), time.perf_counter()
        result = call()
        spent, passed = time.process_time() - before, time.perf_counter() - start
        if not what.startswith("("):
            cpu[0] += spent
            wall[0] += passed
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{what:24} CPU {spent:6.2f} s   wall {passed:6.2f} s   peak {peak:6.0f} MiB")
        return result

    with tempfile.TemporaryDirectory() as folder:
        named = arms(-(-chosen.runs // chosen.seeds))
        jobs = [(arm, seed) for arm in named for seed in range(chosen.seeds)][: chosen.runs]
        for (arm, strength, control), seed in jobs:
            save_record(record(arm, seed, strength, control, rng), Path(folder) / arm / f"seed-{seed}" / "record.json")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.json"))
        print(f"{len(jobs)} records, {len(named)} arms, {size / 1e6:.1f} MB")
        found = timed("read", lambda: read_records(folder))
        compared = timed("compare", lambda: compare(found.records))
        (section,) = compared.sections
        timed("(verdicts)", lambda: verdicts(compared))
        matches = timed("(equal task loss)", lambda: compare_at_matched_loss(section))
        timed("(fronts, hypervolumes)", lambda: [fronts(section, metric) for metric in section.headlines])
        timed("(rank correlations)", lambda: rank_correlations(section))
        timed("print", lambda: print_comparison(compared, Console(file=io.StringIO(), width=120)))
        page = timed("page", lambda: write_html(compared, Path(folder) / "tradeoff.html"))
        print(f"{'the command':24} CPU {cpu[0]:6.2f} s   wall {wall[0]:6.2f} s")
        print(f"{len(matches)} comparisons at equal loss; page {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
