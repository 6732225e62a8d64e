"""What the README shows runs, and stays short."""

import re
from pathlib import Path

from pytorch_lightning import Trainer

from legibility.lightning_plugins import InterpretabilityReport, L1Sparsity, StudentLegibility
from legibility.recipes._cli import _parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_snippet_makes_a_trainer() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"Trainer": lambda **options: Trainer(logger=False, enable_checkpointing=False, **options)}
    exec(snippet, names)  # noqa: S102
    trainer = names["trainer"]
    kinds = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    assert {InterpretabilityReport, L1Sparsity, StudentLegibility} <= kinds


def test_every_command_is_one_that_the_command_line_knows() -> None:
    commands = re.findall(r"^legibility (.*?)(?:  .*)?$", README, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        _parser().parse_args(command.split("#")[0].split())


def test_it_is_short_and_the_make_targets_exist() -> None:
    assert len(README.splitlines()) <= 120
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
