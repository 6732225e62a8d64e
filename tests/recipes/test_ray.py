"""Runs as Ray Tune trials on a local cluster: the same records, failures kept as failures."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from legibility.recipes._cli import main
from legibility.recipes._engine import run
from legibility.recipes._plan import plan
from legibility.recipes._ray import _waves, ray_sweep


def test_bases_come_before_arms_and_arms_before_controls() -> None:
    jobs = plan(["stdlib_lm"], seeds=[0, 1], out=Path("runs"))
    waves = [{job.arm for job in wave} for wave in _waves(jobs)]
    assert waves[0] == {"base"}
    assert {"plain", "legibility-0.3", "early-stop"} <= waves[1]
    assert waves[2] == {"temperature-0.1", "temperature-0.3", "untrained"}
    assert sum(len(wave) for wave in _waves(jobs)) == len(jobs)


def test_without_ray_it_is_said_how_to_get_it(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "./toy.py", "--ray"]) == 2
    assert 'pip install "legibility[ray]"' in capsys.readouterr().err


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_trials_leave_the_records_that_a_run_leaves(
    toy: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = toy.read_text().replace('{"decay": 0.5}', '{"fail": True}')
    control = (
        '    base=Base("plain", 2),\n'
        '    controls={"raw": Control("random-init", "plain"), "no": Control("random-init", "decay")},\n    presets={'
    )
    toy.write_text(text.replace("    presets={", control))
    jobs = plan(["./toy.py"], seeds=[0], out=Path("runs"))
    assert ray_sweep(jobs, 2, Console()) == 1
    printed = capsys.readouterr().out
    assert "4 of 6 runs are finished." in printed
    assert "decay/seed-0: FloatingPointError: this arm always fails" in printed
    assert "no/seed-0: it was not run" in printed
    assert sorted(job.arm for job in jobs if job.state() == "finished") == ["base", "other", "plain", "raw"]
    assert ray_sweep(plan(["./toy.py"], arms=["raw"], seeds=[0], out=Path("runs")), 2, Console()) == 0
    for alone in plan(["./toy.py"], arms=["other"], seeds=[0], out=Path("alone")):
        run(alone)
    records = [json.loads(Path(out, "toy/quick/other/seed-0/record.json").read_text()) for out in ("runs", "alone")]
    assert records[0] == records[1]
