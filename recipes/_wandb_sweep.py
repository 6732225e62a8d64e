"""A sweep that W&B hands out: one YAML for each recipe; agents on any machine run its arms and seeds."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from legibility.recipes._folder import write
from legibility.recipes._plan import Job
from legibility.recipes._recipe import RESERVED

FILE = "wandb-sweep.yaml"


def sweep_config(jobs: Sequence[Job], project: str) -> dict[str, Any]:
    """The configuration of a W&B sweep: a grid of the arms and seeds of some runs of one recipe and preset.

    An agent runs ``legibility run`` with W&B's ``${args}`` (``--arm=... --seed=...``), which runs what the arm needs
    first, unless it is there: agents that share the folder share bases too, and wait for one another there.

    Args:
        jobs: The runs.
        project: W&B's project.
    """
    first = jobs[0]
    out = first.folder.parents[3]
    asked = [job for job in jobs if job.arm != RESERVED]
    return {
        "name": f"{first.recipe}/{first.preset}",
        "project": project,
        "method": "grid",
        "metric": {"name": "legibility/task/loss", "goal": "minimize"},
        "parameters": {
            "arm": {"values": list(dict.fromkeys(job.arm for job in asked))},
            "seed": {"values": list(dict.fromkeys(job.seed for job in asked))},
        },
        "command": [
            *("${env}", "legibility", "run", _relative(first)),
            *(f"--preset={first.preset}", f"--out={out}", f"--wandb={project}"),
            "${args}",
            *first.overrides,
        ],
    }


def offer_sweeps(jobs: Sequence[Job], project: str, console: Console) -> int:
    """Writes a sweep for each recipe beside its runs, registers it, and says how agents are started.

    Returns:
        0, or 1 if W&B did not take one; its file is there then, for later.
    """
    code = 0
    for folder in dict.fromkeys(job.folder.parents[1] for job in jobs):
        own = [job for job in jobs if job.folder.parents[1] == folder]
        config = sweep_config(own, project)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / FILE, yaml.safe_dump(config, sort_keys=False))
        count = len(config["parameters"]["arm"]["values"]) * len(config["parameters"]["seed"]["values"])
        console.print(f"Wrote {folder / FILE}: {count} runs.", highlight=False, markup=False)
        try:
            import wandb

            identity = wandb.sweep(config, project=project)
        except Exception as error:  # noqa: BLE001 - whatever a foreign service raises
            code = 1
            by_hand = f"wandb sweep --project {shlex.quote(project)} {shlex.quote(str(folder / FILE))}"
            message = f"W&B did not register it ({type(error).__name__}: {error}). After `wandb login`: {by_hand}"
            print(message, file=sys.stderr)
        else:
            console.print(
                f"Start as many agents as you like, anywhere: wandb agent --project {shlex.quote(project)} {identity}",
                highlight=False,
                markup=False,
            )
    return code


def _relative(job: Job) -> str:
    """As agents are to be started: from this folder, or one like it on their machine."""
    path = Path(job.named)
    return f"./{path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else job.named
