"""What the wheel would hold, and which way its parts lean on each other."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {"tests", "benchmarks", "docs"}
HOUSE = ["losses", "students", "scores", "lightning_plugins", "recipes"]  # each may import those before it
MAY_IMPORT = {room: set(HOUSE[: place + 1]) for place, room in enumerate(HOUSE)} | {"tradeoff": {"tradeoff"}}
MAY_IMPORT["lightning_plugins"].add("tradeoff")  # writes run records
MAY_IMPORT["recipes"].add("tradeoff")  # compares them
KNOWS_LIGHTNING = {"lightning_plugins", "recipes"}
SLOW_OR_OPTIONAL = ["wandb", "sklearn", "matplotlib", "networkx", "plotly"]


def rooms() -> list[str]:
    return sorted(
        folder.name
        for folder in ROOT.iterdir()
        if (folder / "__init__.py").exists() and folder.name not in NOT_INSTALLED and not folder.name.startswith(".")
    )


def setuptools() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def test_every_package_is_listed() -> None:
    folders = [init.parent.relative_to(ROOT) for room in rooms() for init in (ROOT / room).rglob("__init__.py")]
    expected = sorted("legibility." + ".".join(folder.parts) for folder in folders)
    assert setuptools()["packages"] == expected, "the wheel holds only what `packages` lists"


def test_every_room_is_mapped_to_its_folder() -> None:
    assert setuptools()["package-dir"] == {f"legibility.{room}": room for room in rooms()}
    assert rooms() == sorted(MAY_IMPORT), "a new room needs its place among the arrows"


def test_no_folder_hides_the_installed_package() -> None:
    assert not (ROOT / "legibility").exists() and not (ROOT / "legibility.py").exists()


@pytest.mark.parametrize("room", rooms())
def test_package_is_marked_as_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").exists()


def imported_by(modules: str, after: str = "sys") -> set[str]:
    """Which of SLOW_OR_OPTIONAL a fresh interpreter loads by `import modules`, once it has imported others."""
    loaded = f"{{name for name in {SLOW_OR_OPTIONAL} if name in sys.modules}}"
    program = f"import sys, {after}; before = {loaded}; import {modules}; print(sorted({loaded} - before))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # -P: what is installed, not what lies in the current folder
    command = [sys.executable, "-P", "-c", program]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return set(ast.literal_eval(run.stdout.splitlines()[-1]))


def test_importing_the_plugins_is_light() -> None:
    # Lightning and torchmetrics may load some of these where they find them: only ours count.
    ours = imported_by("legibility.lightning_plugins", after="pytorch_lightning, torchmetrics")
    assert not ours, f"import {', '.join(sorted(ours))} inside the function that uses it"


def test_loaded_modules_are_seen() -> None:
    assert imported_by("wandb") >= {"wandb"}


def imports(file: Path) -> Iterator[tuple[int, str, int]]:
    """Line, full name and level (0: absolute) of everything that `file` imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from legibility import losses" names its room only in the alias.
            yield from ((node.lineno, f"{node.module}.{alias.name}", node.level) for alias in node.names)


def complaint(room: str, name: str, level: int) -> str | None:
    first, *rest = name.split(".")
    if level:
        return "relative import"
    if first in MAY_IMPORT:
        return f"write legibility.{first}"
    if first in ("lightning", "pytorch_lightning") and room not in KNOWS_LIGHTNING:
        return "only lightning_plugins and recipes know Lightning"
    if first == "legibility" and not (rest and rest[0] in MAY_IMPORT[room]):
        return f"{room} may import {', '.join(sorted(MAY_IMPORT[room]))}"
    return None


@pytest.mark.parametrize("room", rooms())
def test_arrows_run_one_way(room: str) -> None:
    complaints = [
        f"{file.relative_to(ROOT)}:{line}: {name}: {why}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for line, name, level in imports(file)
        if (why := complaint(room, name, level))
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("room", "code", "allowed"),
    [
        ("losses", "import torch", True),
        ("losses", "from legibility.losses._imitation import forward_kl", True),
        ("losses", "import legibility.students", False),
        ("losses", "from legibility import students", False),
        ("losses", "import legibility", False),
        ("losses", "from . import _imitation", False),
        ("students", "from legibility.losses import forward_kl", True),
        ("students", "from losses import forward_kl", False),
        ("scores", "def f():\n    import pytorch_lightning", False),
        ("scores", "from lightning.pytorch import Trainer", False),
        ("scores", "from legibility.tradeoff import RunRecord", False),
        ("lightning_plugins", "from legibility.tradeoff import RunRecord", True),
        ("lightning_plugins", "import pytorch_lightning", True),
        ("lightning_plugins", "import legibility.recipes", False),
        ("tradeoff", "from legibility.losses import forward_kl", False),
        ("recipes", "from legibility.tradeoff import RunRecord", True),
    ],
)
def test_the_arrows_are_seen(room: str, code: str, allowed: bool, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(code)
    assert [complaint(room, name, level) is None for _, name, level in imports(file)] == [allowed]
