"""What the default report costs on the bundled recipes: at most 15 % of the fit?

    python benchmarks/report_cost.py [--seeds 2]

Copies each recipe, leaves its `InterpretabilityReport` nothing but what says how the model is read (so students, passes,
budget, scores and page are the defaults; the recipes themselves name students and a page, which then are fitted and
drawn whatever that takes), and runs its plain arm (of `l1_for_l2` "neither"), one run at a time.

Measured on two quiet cores with --seeds 1:

| recipe, preset | fit, s | report, s | share | page |
|---|---|---|---|---|
| digits, full | 1.9 | .04 | 2.1 % | left out |
| l1_for_l2, full | 1.8 | .04 | 2.3 % | left out |
| sparsity_digits, full | 1.8 | .04 | 2.3 % | left out |
| sparsity_lm, full | 4.0 | .43 | 10.5 % | left out |
| stdlib_lm, quick | 9.6 | 1.34 | 14.0 % | left out |
| stdlib_lm, full | 27.8 | 3.10 | 11.1 % | drawn |

Students are left out everywhere: their protocol takes longer than these fits allow. Little beside the sparsity of the
weights is measured in such fits; on a busy machine the estimates are worse.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from legibility.recipes._find import copy_recipe

RECIPES = (  # with the arm that is trained alone
    ("digits", "full", "plain"),
    ("l1_for_l2", "full", "neither"),
    ("sparsity_digits", "full", "plain"),
    ("sparsity_lm", "full", "plain"),
    ("stdlib_lm", "quick", "plain"),
    ("stdlib_lm", "full", "plain"),
)
READING = ("taps", "concepts")


def with_default_report(name: str, folder: Path) -> Path:
    """A copy of the recipe."""
    module, shared = copy_recipe(name, str(folder / f"default_{name}.py"))
    config = yaml.safe_load(shared.read_text())
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("InterpretabilityReport"):
            given = callback["init_args"]
            callback["init_args"] = {key: given[key] for key in READING if key in given}
    shared.write_text(yaml.safe_dump(config))
    return module


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    seeds = parser.parse_args().seeds
    print("| recipe, preset | fit, s | report, s | share | held-out students | page | scores with a value |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, preset, arm in RECIPES:
            folder = Path(temporary) / f"{name}-{preset}"
            module = with_default_report(name, folder)
            sweep = [sys.executable, "-m", "legibility.recipes._cli", "sweep", str(module), "--arms", arm]
            done = subprocess.run(
                [*sweep, "--seeds", str(seeds), "--preset", preset, "--jobs", "1", "--out", str(folder / "runs")],
                check=False,
                capture_output=True,
                text=True,
            )
            paths = sorted(folder.rglob("record.json"))
            if done.returncode or not paths:
                raise RuntimeError(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            for path in paths:
                record = json.loads(path.read_text())
                cost, scores = record["cost"], record["scores"]
                fitted = any(entry["name"] == "held_out_kl" and entry["value"] is not None for entry in scores)
                print(
                    f"| {name}, {preset} | {cost['fit_seconds']:.1f} | {cost['report_seconds']:.2f} "
                    f"| {100 * cost['report_share']:.1f} % | {'fitted' if fitted else 'left out'} "
                    f"| {'drawn' if (path.parent / 'model.html').is_file() else 'left out'} "
                    f"| {sum(entry['value'] is not None for entry in scores)} of {len(scores)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
