"""Which runs there are, in which order, and what makes two of them the same."""

from pathlib import Path

import pytest

from legibility.recipes import _code
from legibility.recipes._cli import main
from legibility.recipes._folder import write_failure
from legibility.recipes._plan import Job, merge, plan, unfinished, without_failed
from legibility.tradeoff import CostEntry, RunRecord, TaskEntry, save_record

OUT = Path("runs")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def with_base_and_controls(toy: Path) -> None:
    edit(
        toy,
        '    presets={\n        "quick"',
        '    base=Base("plain", 2),\n'
        '    controls={"cool": Control("temperature", "plain", "decay"), "raw": Control("random-init", "plain")},\n'
        '    presets={\n        "quick"',
    )


def one(arm: str, **options: object) -> Job:
    jobs = plan(["./toy.py"], arms=[arm], seeds=[0], out=OUT, **options)  # type: ignore[arg-type]
    return next(job for job in jobs if job.arm == arm)


def test_merge_leaves_both_sides_alone() -> None:
    below, above = {"a": {"x": 1, "y": [1, 2]}}, {"a": {"y": [3]}, "b": None}
    assert merge(below, above) == {"a": {"x": 1, "y": [3]}, "b": None}
    assert below == {"a": {"x": 1, "y": [1, 2]}}
    assert above == {"a": {"y": [3]}, "b": None}


def test_merge_of_classes() -> None:
    below = {"model": {"class_path": "a.A", "init_args": {"x": 1, "y": 2}}}
    assert merge(below, {"model": {"init_args": {"y": 3}}})["model"]["init_args"] == {"x": 1, "y": 3}
    assert merge(below, {"model": {"class_path": "a.A", "init_args": {"y": 3}}})["model"]["init_args"] == {
        "x": 1,
        "y": 3,
    }
    assert merge(below, {"model": {"class_path": "b.B"}}) == {"model": {"class_path": "b.B"}}


def test_a_sweep_is_arms_by_seeds_in_their_folders(toy: Path) -> None:
    jobs = plan(["./toy.py"], out=OUT)
    assert [str(job.folder) for job in jobs] == [
        f"runs/toy/quick/{arm}/seed-{seed}" for seed in (0, 1) for arm in ("plain", "decay", "other")
    ]
    assert len({job.digest for job in jobs}) == len(jobs)


def test_layers_yaml_preset_arm(toy: Path) -> None:
    edit(toy, '"decay": Arm(config={', '"decay": Arm(config={"trainer": {"max_steps": 5}, ')
    assert one("plain").config["trainer"]["max_steps"] == 4
    assert one("plain", preset="long").config["trainer"]["max_steps"] == 8
    assert one("decay", preset="long").config["trainer"]["max_steps"] == 5
    assert one("decay").config["model"] == {"class_path": "toy.Model", "init_args": {"decay": 0.5}}
    assert [entry["class_path"] for entry in one("other").config["trainer"]["callbacks"]] == [
        "toy.InterpretabilityReport",
        "toy.Other",
    ]
    assert [entry["class_path"] for entry in one("plain").config["trainer"]["callbacks"]] == [
        "toy.InterpretabilityReport"
    ]


def test_needs_come_first_and_are_added(toy: Path) -> None:
    with_base_and_controls(toy)
    jobs = plan(["./toy.py"], seeds=[3], out=OUT)
    assert [job.arm for job in jobs] == ["base", "plain", "decay", "other", "cool", "raw"]
    for index, job in enumerate(jobs):
        assert set(job.needs) <= {before.folder for before in jobs[:index]}
    asked = plan(["./toy.py"], arms=["cool"], seeds=[3], out=OUT)
    assert [job.arm for job in asked] == ["base", "plain", "decay", "cool"]
    base = asked[0]
    assert base.config["trainer"]["max_steps"] == 2
    assert base.config["trainer"]["callbacks"] == []  # no report: a base is not a result
    assert asked[1].start == base.folder
    assert asked[3].start == asked[1].folder
    assert asked[3].digest == jobs[4].digest


def test_a_preset_may_shorten_the_base(toy: Path) -> None:
    with_base_and_controls(toy)
    edit(toy, "seeds=(0, 1), minutes=0.1", "seeds=(0, 1), base_steps=1")
    assert plan(["./toy.py"], out=OUT)[0].config["trainer"]["max_steps"] == 1
    assert plan(["./toy.py"], preset="long", out=OUT)[0].config["trainer"]["max_steps"] == 2


def test_equal_digests_exactly_for_equal_runs(toy: Path) -> None:
    with_base_and_controls(toy)
    before = {arm: one(arm).digest for arm in ("plain", "decay", "other", "cool")}
    edit(toy, '"""A toy recipe."""', '"""Numbers: 1, 2, 3."""')
    assert {arm: one(arm).digest for arm in before} == before
    # One arm's setting: that arm is another run, and the control that is fitted to it.
    edit(toy, '{"decay": 0.5}', '{"decay": 0.6}')
    changed = {arm for arm in before if one(arm).digest != before[arm]}
    assert changed == {"decay", "cool"}
    # The base changes everything that starts from it.
    edit(toy, 'Base("plain", 2)', 'Base("plain", 3)')
    assert all(one(arm).digest != digest for arm, digest in before.items())


def test_overrides_preset_and_code_are_part_of_the_digest(toy: Path) -> None:
    before = one("plain")
    assert one("plain", overrides=["--trainer.max_steps=2"]).digest != before.digest
    assert one("plain", preset="long").digest != before.digest
    edit(toy, "0.01", "0.02")
    assert one("plain").digest != before.digest


def test_code_is_the_same_whatever_it_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_code, "__file__", str(tmp_path / "recipes" / "_code.py"))
    (tmp_path / "losses").mkdir()
    (tmp_path / "tradeoff").mkdir()

    def digest(text: str, room: str = "losses") -> str:
        (tmp_path / room / "_kl.py").write_text(text)
        return _code.code_of_library.__wrapped__()

    before = digest('"""Loss."""\nx = 1\n')
    assert digest('"""A loss."""\n# One.\nx = 1\n') == before
    assert digest("x = 2", room="tradeoff") == before, "that reads what runs have left"
    assert digest('"""Loss."""\nx = 2\n') != before


def test_finished_runs_of_other_code_are_kept_and_said(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep() -> str:
        assert main(["sweep", "./toy.py", "--arms", "plain", "--seeds", "1"]) == 0
        return capsys.readouterr().out

    assert main(["run", "./toy.py", "--seed", "0"]) == 0
    record = (one("plain").folder / "record.json").stat().st_mtime_ns
    capsys.readouterr()
    assert "1 of 1 runs are finished already.\nCompare them" in sweep()
    said = (
        "Made by other code of legibility than this, and kept: toy/quick/plain/seed-0. Another --out runs all anew.\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr("legibility.recipes._plan.code_of_library", lambda: "another")
        assert said in sweep()
    (one("plain").folder / "origin.json").unlink()
    assert said in sweep(), "it was not written down before there was such a file"
    assert (one("plain").folder / "record.json").stat().st_mtime_ns == record


def test_wrong_names_are_answered_with_near_ones(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"no arm 'plan': did you mean plain\? There are: plain, decay, other"):
        plan(["./toy.py"], arms=["plan"], out=OUT)
    with pytest.raises(ValueError, match=r"recipe 'toy' has no preset 'quik': did you mean quick\?"):
        plan(["./toy.py"], preset="quik", out=OUT)
    with pytest.raises(ValueError, match="would share a folder"):
        plan(["./toy.py", "./toy.py"], out=OUT)


@pytest.mark.parametrize("override", ["max_steps=3", "--trainer.max_steps", "3"])
def test_overrides_have_one_form(toy: Path, override: str) -> None:
    with pytest.raises(ValueError, match="overrides are written --key=value"):
        plan(["./toy.py"], out=OUT, overrides=[override])


def test_a_recipe_without_a_report_is_refused(toy: Path) -> None:
    edit(toy.with_suffix(".yaml"), "InterpretabilityReport", "Other")
    with pytest.raises(ValueError, match=r"must list InterpretabilityReport under trainer\.callbacks"):
        plan(["./toy.py"], out=OUT)


def test_arms_of_several_recipes(toy: Path) -> None:
    jobs = plan(["digits", "./toy.py"], arms=["decay", "proximal", "plain"], seeds=[0], out=OUT)
    assert [(job.recipe, job.arm) for job in jobs] == [
        ("digits", "plain"),
        ("digits", "proximal"),
        ("toy", "plain"),
        ("toy", "decay"),
    ]


def test_a_base_is_trained_only_for_runs_that_are_open(toy: Path) -> None:
    with_base_and_controls(toy)
    jobs = plan(["./toy.py"], arms=["cool"], seeds=[0], out=OUT)
    assert unfinished(jobs) == jobs

    def finish(job: Job) -> None:
        job.folder.mkdir(parents=True)
        (job.folder / "digest.txt").write_text(job.digest)
        task = TaskEntry("mse", 1.0, None, None, None, "test")
        record = RunRecord(job.arm, 0, "toy", {}, [], task, [], CostEntry(None, None, None, None, None, {}, 1), {})
        save_record(record, job.folder / "record.json")

    base, plain, decay, cool = jobs
    finish(plain)
    assert unfinished(jobs) == [base, decay, cool]
    finish(decay)
    # The base's checkpoint is gone, but nothing needs it any more.
    assert unfinished(jobs) == [cool]
    assert unfinished(jobs, again="decay") == [base, decay, cool]
    finish(cool)
    assert unfinished(jobs) == []
    assert unfinished(jobs, again="cool") == [cool]


def test_what_needs_a_failed_run_is_left_out_with_it(tmp_path: Path) -> None:
    jobs = plan(["stdlib_lm"], arms=["early-stop", "temperature-0.3"], seeds=[0], out=tmp_path)
    plain = next(job for job in jobs if job.arm == "plain")
    plain.folder.mkdir(parents=True)
    write_failure(plain.folder, plain.digest, "ValueError: no")
    assert plain.state() == "failed"
    assert [job.arm for job in without_failed(jobs)] == ["base", "legibility-0.3", "early-stop"]
    assert [job.arm for job in unfinished(jobs)] == [job.arm for job in jobs], "tried again, if that is asked for"
    jobs[0].folder.mkdir(parents=True)
    write_failure(jobs[0].folder, jobs[0].digest, "ValueError: no")
    assert without_failed(jobs) == []
