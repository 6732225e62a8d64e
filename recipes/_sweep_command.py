"""The verb ``sweep``: arms x strengths x seeds, here, over a Ray cluster, by W&B's agents, or where Optuna looks."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from legibility.recipes._plan import Job, plan
from legibility.recipes._recipe import RESERVED
from legibility.recipes._usage import UsageError, usage


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sweep`` that no other verb has."""
    parser.add_argument("recipes", metavar="NAME", nargs="+", help="names, or paths of own recipes")
    parser.add_argument("--arms", type=_names, help="comma-separated, also ARM-xTIMES as below (default: all)")
    parser.add_argument(
        "--strengths",
        type=_multiples,
        default=(),
        metavar="TIMES,...",
        help="run each arm that has strengths at these multiples of them too: 0.5,2 adds ARM-x0.5 and ARM-x2",
    )
    parser.add_argument("--seeds", type=_seeds, help="how many (5: 0 to 4), or which (0,3,7); default: the preset's")
    parser.add_argument("--jobs", type=positive, help="runs at a time (default: one for each CPU core)")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed in an earlier sweep")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ray", action="store_true", help="as Ray Tune trials, over a Ray cluster if there is one")
    where.add_argument("--wandb-sweep", metavar="PROJECT", help="run nothing: register a W&B sweep for agents to run")
    where.add_argument(
        "--optuna",
        type=positive,
        metavar="TRIALS",
        help="let Optuna choose arms and strengths, for the front of task loss and --score",
    )
    parser.add_argument("--score", default="held_out_kl", help="what --optuna looks at (default: held_out_kl)")


def sweep_command(parsed: argparse.Namespace, console: Console) -> int:
    """Runs what was asked for; the exit code."""
    from legibility.recipes._sweep import cores, sweep

    jobs = planned(parsed, parsed.recipes, parsed.arms, parsed.seeds, parsed.strengths)
    if parsed.wandb_sweep:
        from legibility.recipes._wandb_sweep import offer_sweeps

        return offer_sweeps(jobs, parsed.wandb_sweep, console)
    if parsed.optuna:
        from legibility.recipes._optuna import search

        with usage():
            return search(parsed, parsed.jobs or cores(), console)
    if parsed.ray:
        from legibility.recipes._ray import ray_sweep

        with usage():
            code = ray_sweep(jobs, parsed.jobs, console, retry_failed=parsed.retry_failed)
    else:
        code = sweep(jobs, parsed.jobs or cores(), console, retry_failed=parsed.retry_failed)
    if code == 0:
        folders = dict.fromkeys(str(job.folder.parents[1]) for job in jobs)
        console.print(f"Compare them: legibility compare {' '.join(folders)}", highlight=False, markup=False)
    return code


def planned(
    parsed: argparse.Namespace,
    names: Sequence[str],
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    strengths: Sequence[float] = (),
) -> list[Job]:
    """The runs that a command asks for.

    Raises:
        UsageError: What was named does not exist, or overrides would replace a finished run.
    """
    out: Path = parsed.out
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise UsageError(f"a seed must be a whole number from 0 to {2**32 - 1}, got {seed}")
    with usage():
        jobs = plan(
            names,
            preset=parsed.preset,
            arms=arms,
            seeds=seeds,
            strengths=strengths,
            out=out,
            overrides=parsed.overrides,
        )
    for job in jobs if parsed.overrides else ():
        if job.state() == "other" and job.arm != RESERVED:
            raise UsageError(
                f"{job.folder} holds a finished run of another configuration. A run with overrides does not "
                f"replace it: give another `--out`, such as --out {out}-try"
            )
    return [replace(job, project=parsed.wandb) for job in jobs]


def positive(text: str) -> int:
    """A number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, got {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or (len(parts) == 1 and int(text) < 1):
        raise argparse.ArgumentTypeError(f"expected a number of seeds from 1 up or seeds like 0,3,7, got {text!r}")
    return list(range(int(text))) if len(parts) == 1 else list(dict.fromkeys(int(part) for part in parts))


def _multiples(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(number) and number > 0 for number in found):
        raise argparse.ArgumentTypeError(f"expected numbers above 0 like 0.5,2, got {text!r}")
    return found
