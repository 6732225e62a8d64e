"""The verbs, as a user types them."""

import json
from pathlib import Path

import pytest

from legibility.recipes._cli import main

Captured = pytest.CaptureFixture[str]


def test_ls_lists_questions_arms_and_presets(capsys: Captured) -> None:
    assert main(["ls"]) == 0
    printed = capsys.readouterr().out
    for word in ("digits", "plain", "l2-dropout", "l1-in-loss", "proximal", "reweighted-heal", "quick", "full", "min"):
        assert word in printed


def test_cp_and_run_of_the_copy(toy: Path, capsys: Captured) -> None:
    assert main(["cp", "./toy.py", "my_tiny.py"]) == 0
    assert "legibility run ./my_tiny.py" in capsys.readouterr().out
    assert main(["run", "./my_tiny.py", "--arm", "other", "--seed", "7"]) == 0
    record = json.loads(Path("runs/my_tiny/quick/other/seed-7/record.json").read_text())
    assert (record["recipe"], record["arm"], record["seed"]) == ("my_tiny", "other", 7)
    assert "Other says 0.25" in Path("runs/my_tiny/quick/other/seed-7/log.txt").read_text()


def test_run_takes_the_baseline_and_the_first_seed(toy: Path, capsys: Captured) -> None:
    assert main(["run", "./toy.py", "--preset", "long", "--out", "elsewhere"]) == 0
    assert "elsewhere/toy/long/plain/seed-0/record.json" in capsys.readouterr().out
    assert Path("elsewhere/toy/long/plain/seed-0/record.json").exists()


def test_overrides_do_not_replace_a_finished_run(toy: Path, capsys: Captured) -> None:
    assert main(["run", "./toy.py"]) == 0
    record = Path("runs/toy/quick/plain/seed-0/record.json").read_bytes()
    assert main(["run", "./toy.py", "--trainer.max_steps=2"]) == 2
    assert "give another `--out`, such as --out runs-try" in capsys.readouterr().err
    assert Path("runs/toy/quick/plain/seed-0/record.json").read_bytes() == record
    assert main(["run", "./toy.py", "--trainer.max_steps=2", "--out", "runs-try"]) == 0
    tried = json.loads(Path("runs-try/toy/quick/plain/seed-0/record.json").read_text())
    assert tried["settings"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digit"], "no recipe 'digit': did you mean digits"),
        (["run", "digits", "--arm", "proximall"], "no arm 'proximall': did you mean proximal?"),
        (["sweep", "digits", "--preset", "fall"], "has no preset 'fall': did you mean full?"),
        (["sweep", "digits", "--arms", "plain,nothing"], "no arm 'nothing'"),
        (["run", "digits", "trainer.max_epochs=3"], "overrides are written --key=value"),
        (
            ["sweep", "digits", "--arms", "plain,", "proximal", "--jobs", "1"],
            "proximal: belongs to no argument; several values of one are written with commas, without spaces",
        ),
        (["run", "digits", "--seed", "-1"], "a seed must be a whole number from 0 to 4294967295, got -1"),
        (
            ["run", "digits", "--arm", "proximal", "--trainer.max_epochs=1", "--trainer.callbacks.strenght=2"],
            "legibility run: `--trainer.callbacks.strenght=2` does not fit the configuration of digits, arm proximal: ",
        ),
        (
            ["run", "digits", "--arm", "proximal", "--trainer.callbacks.strenght=2"],
            "class_path 'legibility.lightning_plugins.L1Sparsity': Option 'strenght' is not accepted\n",
        ),
        (["run", "digits", "--trainer.max_epochs=many"], "`--trainer.max_epochs=many` does not fit"),
        (["run", "digits", "--trainr.max_epochs=3"], "unrecognized arguments: --trainr.max_epochs=3"),
        (["sweep", "digits", "--seeds", "1", "3"], "3: belongs to no argument"),
        (["cp", "digit"], "no recipe 'digit'"),
        (["compare", "nowhere"], "nowhere doesn't exist"),
        (["compare", "."], "at least one run record"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(toy: Path, capsys: Captured, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["ls", "--fast"],
        ["sweep", "digits", "--jobs", "0"],
        ["sweep", "digits", "--seeds", "0"],
        ["sweep", "digits", "--seeds", "1,x"],
        ["run", "digits", "--seed", "one"],
    ],
)
def test_argparse_refuses(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: legibility" in capsys.readouterr().err


def test_validate_finds_what_would_fail(toy: Path, capsys: Captured) -> None:
    assert main(["validate", "./toy.py"]) == 0
    assert "./toy.py: 3 arms, 2 presets, all fit" in capsys.readouterr().out
    assert not Path("runs").exists()
    text = toy.read_text()
    toy.write_text(text.replace('{"strength": 0.25}', '{"strong": 0.25}'))
    assert main(["validate", "./toy.py"]) == 1
    printed = capsys.readouterr().out
    assert "toy/quick/other: " in printed
    assert "strong" in printed
    assert "toy/quick/plain" not in printed
    toy.write_text(text.replace('name="toy"', 'name="tin"'))
    assert main(["validate", "./toy.py", "nothing"]) == 1
    printed = capsys.readouterr().out
    assert "RECIPE is 'tin'" in printed
    assert "no recipe 'nothing'" in printed


def test_compare_prints_the_table_and_writes_the_picture(toy: Path, capsys: Captured) -> None:
    pytest.importorskip("plotly")
    for arm in ("plain", "decay"):
        for seed in ("0", "1"):
            assert main(["run", "./toy.py", "--arm", arm, "--seed", seed]) == 0
    capsys.readouterr()
    assert main(["compare", "runs"]) == 0
    printed = capsys.readouterr().out
    assert "decay" in printed
    assert printed.rstrip().endswith("Picture: runs/tradeoff.html")
    assert "decay" in Path("runs/tradeoff.html").read_text()
    assert main(["compare", "runs/toy", "--baseline", "decay", "--html", "other.html"]) == 0
    assert Path("other.html").exists()
    assert main(["compare", "runs", "--export", "a/t.md", "--export", "t.runs.csv"]) == 0
    printed = capsys.readouterr().out
    assert "Written: a/t.md" in printed and "Written: t.runs.csv" in printed
    assert "decay" in Path("a/t.md").read_text() and Path("t.runs.csv").read_text().startswith("recipe,arm,seed,")
    Path("runs/tradeoff.html").unlink()
    assert main(["compare", "runs", "--export", "t.jpg"]) == 2
    assert ".runs.csv" in capsys.readouterr().err and not Path("runs/tradeoff.html").exists()
    assert main(["compare", "runs", "--baseline", "none"]) == 2
    assert "decay, plain" in capsys.readouterr().err
