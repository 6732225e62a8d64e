"""Run records from folders, from W&B's offline runs, from W&B projects."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_stand_in import Artifact, Run, StandIn, serving

from legibility.tradeoff import RunRecord, read_records, save_record
from legibility.tradeoff.records._wandb_offline import offline_runs

Make = Callable[..., RunRecord]

LOG_ARTIFACT = """
import json, sys, wandb
folder, name, files = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
run = wandb.init(project="demo", name=name, dir=folder, mode="offline", settings=wandb.Settings(silent=True, x_disable_stats=True))
for artifact_name, kind, path in files:
    artifact = wandb.Artifact(artifact_name, type=kind)
    artifact.add_file(path, name="record.json")
    run.log_artifact(artifact)
run.log({"legibility/score/held_out_kl": 0.5})
run.finish()
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """offline(name, [(artifact, type, file), ...]) -> the folder of a run that W&B wrote offline."""
    made: list[Path] = []

    def make(name: str, artifacts: list[tuple[str, str, Path]]) -> Path:
        folder = tmp_path_factory.mktemp(name)
        data = folder / "data"
        environment = os.environ | {"WANDB_DATA_DIR": str(data), "WANDB_CACHE_DIR": str(data), "WANDB_MODE": "offline"}
        files = json.dumps([(artifact, kind, str(path)) for artifact, kind, path in artifacts])
        command = [sys.executable, "-c", LOG_ARTIFACT, str(folder), name, files]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
        (run,) = folder.glob("wandb/offline-run-*")
        made.append(run)
        return run

    yield make


def test_a_folder_gives_its_records_with_their_files(tmp_path: Path, record: Make) -> None:
    for seed in (0, 1):
        save_record(record(seed=seed), tmp_path / "a" / f"seed-{seed}" / "record.json")
    found = read_records([tmp_path, tmp_path / "a" / "seed-1"])
    assert [(Path(source).parent.name, one.seed) for source, one in found.records] == [("seed-0", 0), ("seed-1", 1)]
    assert found.left_out == ()


@pytest.mark.parametrize("source", ["nowhere", "./people/demo", "a/b/c/d", "/people/demo", "people/", "people/de?mo"])
def test_what_is_neither_path_nor_project_is_said(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"doesn't exist; give run records, folders .*entity/project"):
        read_records(source)


def test_an_offline_run_gives_the_record_that_it_logged(
    tmp_path: Path, record: Make, offline: Callable[..., Path]
) -> None:
    old, new, other = record(loss=1.0), record(loss=2.25), record(arm="control")
    files = [save_record(one, tmp_path / f"{place}.json") for place, one in enumerate((old, new, other))]
    logged = [("plain", "run-record", files[0]), ("plain", "run-record", files[1]), ("control", "run-record", files[2])]
    run = offline("both", [*logged, ("students", "model", files[0])])
    for path in files:
        path.unlink()  # W&B has copies of its own
    found = read_records(run)
    assert [one for _, one in found.records] == [new, other] and found.left_out == ()
    assert all(str(run) in source for source, _ in found.records)
    # The same by its log, by the folder of all runs, and by a folder above that has no records of its own.
    (log,) = run.glob("*.wandb")
    assert offline_runs(log) == offline_runs(run.parent) == offline_runs(run) == [log]
    assert [one for _, one in read_records(run.parents[1]).records] == [new, other]
    # Staged content that is no longer what was logged is not read; nor is what is gone.
    (staged,) = [path for path in (run.parents[1] / "data").rglob("tmp*") if b'"loss": 2.25' in path.read_bytes()]
    staged.write_bytes(staged.read_bytes().replace(b"2.25", b"1.25"))
    assert "is not what was logged" in read_records(run).left_out[0].reason
    staged.unlink()
    assert "which is gone" in read_records(run).left_out[0].reason
    # A record among the run's own files needs neither the log nor what was staged.
    save_record(new, run / "files" / "record.json")
    shutil.rmtree(run.parents[1] / "data")
    assert [one for _, one in read_records(run).records] == [new]


def test_an_offline_run_without_a_record_is_left_out_and_says_why(
    tmp_path: Path, record: Make, offline: Callable[..., Path]
) -> None:
    run = offline("without", [("students", "model", save_record(record(), tmp_path / "x.json"))])
    (left,) = read_records(run.parent).left_out
    assert left.source == str(run) and "it logged scores but has no artifact of type 'run-record'" in left.reason
    (log,) = run.glob("*.wandb")
    log.write_bytes(b"no log of wandb")
    (left,) = read_records(run).left_out
    assert "its log can't be read" in left.reason or "has no artifact" in left.reason


READ = """
import json, sys
from legibility.tradeoff import read_records
for source in sys.argv[1:]:
    said = []
    try:
        found = read_records(source, progress=lambda *what: said.append(what))
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
    else:
        records = [(where, record.arm, record.seed, record.task.loss) for where, record in found.records]
        left = [(one.source, one.reason) for one in found.left_out]
        print(json.dumps({"records": records, "left": left, "said": said}))
"""


def ask(stand_in: StandIn, sources: list[str], folder: Path, program: str = READ) -> list[dict[str, Any]]:
    """What the real `wandb.Api`, in a process of its own, makes of the stand-in, for each source."""
    environment = os.environ | {
        "WANDB_BASE_URL": stand_in.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "HOME": str(folder),
    }
    environment.pop("WANDB_MODE", None)
    command = [sys.executable, "-P", "-c", program, *sources]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "files downloaded" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def content(tmp_path: Path, one: RunRecord) -> bytes:
    return save_record(one, tmp_path / "content.json").read_bytes()


def test_a_project_is_read_through_the_api(tmp_path: Path, record: Make) -> None:
    def logged(name: str, one: RunRecord, version: int = 0, **more: Any) -> Artifact:
        return Artifact(name, {"record.json": content(tmp_path, one), "students.txt": b"x"}, version, **more)

    runs = [
        Run(
            "r0",
            [logged("rec-0", record(loss=9.0), 0), logged("rec-0", record(loss=1.0), 10), logged("rec-0", record(), 9)],
        ),
        Run("r1", [logged("rec-1", record(seed=1)), logged("rec-1-control", record(arm="warm", seed=1))]),
        Run("r2", [logged("rec-2", record(seed=2), type="model")], {"legibility/score/held_out_kl": 0.5}),
        Run("r3", [], state="crashed"),
        Run("r4", [Artifact("rec-4", {"record.json": content(tmp_path, record())[:-30]})]),
        Run("r5", [Artifact("rec-5", {"other.json": b"{}"})]),
        Run("r6", [logged("rec-6", record(seed=6)), logged("rec-6", record(loss=7.0, seed=6), 1, state="DELETED")]),
    ]
    with serving(StandIn(runs)) as stand_in:
        found, alone, nobody = ask(stand_in, ["people/demo", "people/demo/r1", "people/dome"], tmp_path)
    assert stand_in.unknown == []
    assert [tuple(one[1:]) for one in found["records"]] == [
        ("plain", 0, 1.0),
        ("plain", 1, 2.0),
        ("warm", 1, 2.0),
        ("plain", 6, 2.0),
    ]
    assert found["records"][0][0] == f"{stand_in.url}/people/demo/runs/r0: rec-0/record.json"
    reasons = {source.split(" ")[1]: reason for source, reason in found["left"]}
    assert list(reasons) == ["r2", "r3", "r4", "r5"]
    assert "it logged scores but has no artifact" in reasons["r2"] and "controls" in reasons["r2"]
    assert reasons["r3"].startswith("it has no artifact") and "state: crashed" in reasons["r3"]
    assert "can't be read" in reasons["r4"] and "truncated" in reasons["r4"]
    assert "holds no run record" in reasons["r5"]
    assert found["said"][-1] == ["W&B project people/demo", 7, 7]
    assert [tuple(one[1:3]) for one in alone["records"]] == [("plain", 1), ("warm", 1)]
    assert nobody["error"].startswith("people/dome is no path here, so W&B was asked for it, which failed: ")


def test_a_project_without_login_or_network_is_said_with_the_way_out(tmp_path: Path) -> None:
    unreachable = StandIn([])
    unreachable.url = "http://127.0.0.1:9"
    program = "import os; del os.environ['WANDB_API_KEY']\n" + READ
    (answer,) = ask(unreachable, ["people/demo"], tmp_path, program)
    assert "people/demo is no path here" in answer["error"] and "`wandb login`" in answer["error"]
