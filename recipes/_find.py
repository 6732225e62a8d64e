"""Where recipes are: found by name or by path, read without torch, imported, copied."""

import __future__

import ast
import copy
import difflib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from legibility.recipes._code import assigns, code_of
from legibility.recipes._recipe import Arm, Base, Control, Preset, Recipe

_PACKAGE = "legibility.recipes"
_HERE = Path(__file__).parent
_WORDS: dict[str, Any] = {word.__name__: word for word in (Arm, Base, Control, Preset, Recipe)}


@dataclass(frozen=True)
class Found:
    """A recipe and where it came from.

    Args:
        recipe: What the module's ``RECIPE`` holds.
        module: The name to import.
        path: The module's file. The YAML lies beside it.
    """

    recipe: Recipe
    module: str
    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """What all arms share: the YAML."""
        read = yaml.safe_load(self.path.with_suffix(".yaml").read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"{self.path.with_suffix('.yaml')}: expected a mapping, got {type(read).__name__}")  # noqa: TRY004 - a file's fault, not an argument's
        return read

    @property
    def code(self) -> str:
        """What the module does, without comments, docstrings and ``RECIPE``: equal if a run would be the same."""
        return code_of(self.path)


def near(name: str, names: list[str]) -> str:
    """The end of an error message about a wrong name: the nearest names, then all of them.

    Example:
        >>> near("plane", ["plain", "proximal"])
        'did you mean plain? There are: plain, proximal'
    """
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"There are: {', '.join(names)}"


def shipped() -> list[str]:
    """Names of the recipes that come with the package: modules with a YAML beside them.

    Example:
        >>> "digits" in shipped()
        True
    """
    paths = sorted(_HERE.glob("*.py"))
    return [path.stem for path in paths if path.stem[0] != "_" and path.with_suffix(".yaml").exists()]


def find(name: str) -> Found:
    """Finds a recipe by its name or by the path of its module, and reads it without importing torch if it can.

    Args:
        name: ``digits`` or ``./my_recipe.py``.

    Raises:
        ValueError: If there is no such recipe, or the module has no ``RECIPE``, no YAML beside it, or a name that differs from ``RECIPE.name``.

    Example:
        >>> find("digits").recipe.baseline
        'plain'
    """
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(f"no recipe at {name}: no such file")
        inside = path.parent == _HERE.resolve()
        module = f"{_PACKAGE}.{path.stem}" if inside else path.stem
    else:
        if name not in shipped():
            raise ValueError(
                f"no recipe {name!r}: {near(name, shipped())}. An own recipe is given by path: ./{name}.py"
            )
        path, module = _HERE / f"{name}.py", f"{_PACKAGE}.{name}"
    if not path.with_suffix(".yaml").is_file():
        raise ValueError(f"{path}: a recipe needs its YAML beside it, {path.with_suffix('.yaml').name}")
    recipe = _read(path, module)
    if recipe.name != path.stem:
        raise ValueError(
            f"{path}: `name` of RECIPE is {recipe.name!r}, but the module is {path.stem!r}: make them equal"
        )
    return Found(recipe, module, path)


def load(module: str, path: Path) -> ModuleType:
    """Imports a recipe's module, one given by path under its own plain name, as its YAML names it.

    Raises:
        ValueError: If another module of this name is in the way.
    """
    if "." not in module and str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loaded = importlib.import_module(module)
    if Path(loaded.__file__ or "").resolve() != path.resolve():
        raise ValueError(f"{path}: another module is already called {module!r}; give the recipe another name")
    return loaded


def copy_recipe(name: str, destination: str | None = None) -> list[Path]:
    """Copies a recipe's module and YAML, under a new name, so that the copy runs by its path.

    Args:
        name: The recipe.
        destination: The new module's path, or an existing folder. Default: ``my_<name>.py``.

    Returns:
        The two files written.

    Raises:
        ValueError: If the name is no Python identifier or already means an installed module.
        FileExistsError: If a file is in the way.
    """
    found = find(name)
    path = Path(destination or f"my_{found.recipe.name}.py")
    path = path / f"my_{found.recipe.name}.py" if path.is_dir() else path.with_suffix(".py")
    if not path.stem.isidentifier():
        raise ValueError(f"`DEST` must end in a Python name, such as my_{found.recipe.name}.py, got {path.name!r}")
    if path.stem in sys.stdlib_module_names or (path.stem != found.module and importlib.util.find_spec(path.stem)):
        raise ValueError(f"`DEST`: a module called {path.stem!r} is already installed; take another name")
    written = [path, path.with_suffix(".yaml")]
    if there := [str(target) for target in written if target.exists()]:
        raise FileExistsError(f"{' and '.join(there)} already there: give another DEST")
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in written:
        text = found.path.with_suffix(target.suffix).read_text(encoding="utf-8")
        text = re.sub(rf"\b{re.escape(found.module)}\b(?=[.\"'])", path.stem, text)
        text = re.sub(rf"\bname=([\"']){re.escape(found.recipe.name)}\1", f'name="{path.stem}"', text)
        target.write_text(text, encoding="utf-8")
    return written


def _recipes_of(node: ast.ImportFrom) -> dict[str, Recipe]:
    """What ``from legibility.recipes.digits import RECIPE as DIGITS`` brings, without importing the module."""
    package, _, name = (node.module or "").rpartition(".")
    if package != _PACKAGE or name not in shipped():
        return {}
    return {alias.asname or alias.name: find(name).recipe for alias in node.names if alias.name == "RECIPE"}


def _read(path: Path, module: str) -> Recipe:
    """Reads ``RECIPE``: its assignment alone if plain values are enough, else by importing the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    if not any(assigns(node, "RECIPE") for node in tree.body):
        raise ValueError(f"{path}: no `RECIPE = Recipe(...)` at the top level of the module")
    space = copy.copy(_WORDS)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            space |= _recipes_of(node)
        if assigns(node) or isinstance(node, ast.FunctionDef):
            # What an import would run anyway, less what needs names from other modules.
            try:
                # Annotations are left alone: they may name what only an import brings.
                flags = __future__.annotations.compiler_flag
                exec(compile(ast.Module([node], []), str(path), "exec", flags, dont_inherit=True), space)  # noqa: S102
            except NameError:
                continue
    recipe = space.get("RECIPE") or getattr(load(module, path), "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path}: `RECIPE` must be a legibility.recipes.Recipe, got {type(recipe).__name__}")  # noqa: TRY004
    return recipe
