"""Is a sweep that was killed again and again the sweep that was left alone?

Runs a sweep undisturbed, then the same one into another folder, killed by SIGKILL at random moments (every other time
the whole group of processes, else the parent alone, whose workers must notice) and started again. All records must be
equal but for times and memory, all weights bit for bit, and nothing half-written may be left. Which scores a report has
time for depends on the machine: those that only one of two reports measured are left out, and the others compared to nine
digits, for some differ in their last ones.

Measured, the first line below (48 runs, 2 at a time, on two quiet cores): killed 20 times, after 5, 8, 12, ... 45 and 47
finished runs; 48 of 48 records and models equal, nothing left over; 270 s instead of 80 s, most of it for starting anew.

    python benchmarks/sweep_killed.py --kills 20 -- digits --seeds 8 --preset full
    python benchmarks/sweep_killed.py --kills 3 -- digits --seeds 8 --arms plain --trainer.max_epochs=5
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def sweep(arguments: list[str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "legibility.recipes._cli", "sweep", *arguments, "--out", str(out)]
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What must not depend on when a run was killed."""
    found = {}
    for path in sorted(out.rglob("record.json")):
        record = json.loads(path.read_text())
        del record["created"]
        cost = record["cost"]
        for name in ("fit_seconds", "step_seconds", "report_seconds", "report_share", "peak_memory_bytes"):
            cost[name] = cost.get(name) is not None
        cost["terms"] = sorted(cost["terms"])
        record["scores"] = {f"{score['name']} {score['family']}": score for score in record["scores"]}
        found[str(path.relative_to(out))] = record
    return found


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of scores and for what only one of two reports had time for."""
    if isinstance(one, dict) and isinstance(other, dict):
        late = any("of the budget are left" in str(record.get("reason")) for record in (one, other))
        return late or (one.keys() == other.keys() and all(same(one[key], other[key]) for key in one))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    paths = sorted(out.rglob("last.ckpt"))
    return {str(p.relative_to(out)): torch.load(p, map_location="cpu", weights_only=True)["state_dict"] for p in paths}


def run_seconds(out: Path) -> float:
    """The mean time of a run."""
    costs = [json.loads(path.read_text())["cost"] for path in out.rglob("record.json")]
    return sum((cost["fit_seconds"] or 0) + (cost["report_seconds"] or 0) for cost in costs) / len(costs)


def finished(out: Path) -> int:
    return len(list(out.rglob("digest.txt")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--keep", type=Path, help="folder for both sweeps, to look at afterwards (default: a temporary)"
    )
    parser.add_argument("sweep", nargs="+", help="arguments of `legibility sweep`, after --")
    parsed = parser.parse_args()
    moments = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        whole, killed, log = folder / "whole", folder / "killed", folder / "log.txt"
        start = time.monotonic()
        code = sweep(parsed.sweep, whole, log).wait()
        seconds = time.monotonic() - start
        if code:
            print(log.read_text())
            return code
        count, typical = finished(whole), run_seconds(whole)
        print(f"undisturbed: {count} runs in {seconds:.0f} s", flush=True)
        first = time.monotonic()
        for kill in range(parsed.kills):
            process = sweep(parsed.sweep, killed, log)
            # Spread over the sweep, however slow the machine is; some kills fall into the first seconds, the imports.
            left = count - 1 - (before := finished(killed))
            target = before + moments.randint(0, max(1, 2 * left // (parsed.kills - kill + 1)))
            while process.poll() is None and finished(killed) < min(target, count - 1):
                time.sleep(0.02)
            deadline = time.monotonic() + moments.uniform(0, 1.5 * typical)
            while process.poll() is None and time.monotonic() < deadline and finished(killed) < count - 1:
                time.sleep(0.02)
            if process.poll() is not None:
                print(f"it ended before kill {kill + 1} with code {process.returncode}\n{log.read_text()}")
                return 1
            if kill % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {kill + 1}: {finished(killed)} of {count} runs finished", flush=True)
        code = sweep(parsed.sweep, killed, log).wait()
        print(f"killed {parsed.kills} times: {finished(killed)} runs in {time.monotonic() - first:.0f} s, code {code}")
        expected, found = records(whole), records(killed)
        differ = [name for name in expected if not same(found.get(name), expected[name])]
        wrong = weights(killed)
        for name, state in weights(whole).items():
            if not all(torch.equal(value, wrong[name][key]) for key, value in state.items()):
                differ.append(name)
        left = [str(path) for path in killed.rglob("*") if path.suffix in (".part", ".tmp")]
        print(f"records {len(found)} of {len(expected)}, different: {differ or 'none'}, left over: {left or 'none'}")
        return 1 if code or differ or left or set(found) != set(expected) else 0


if __name__ == "__main__":
    sys.exit(main())
