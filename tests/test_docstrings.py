"""Every public name explains itself, and every example in a docstring does what it says."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PACKAGES = [
    f"legibility.{room}" for room in ("losses", "students", "scores", "lightning_plugins", "tradeoff", "recipes")
]


def modules(package: str) -> Iterator[str]:
    """The package and every module below it, by name: nothing is imported, so one that can't be fails its own test."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is not installed"
    yield package
    yield from below(list(spec.submodule_search_locations), package + ".")


def below(folders: list[str], prefix: str) -> Iterator[str]:
    for found in pkgutil.iter_modules(folders, prefix):
        yield found.name
        if found.ispkg:
            last = found.name.rpartition(".")[2]
            yield from below([str(Path(folder, last)) for folder in folders], found.name + ".")


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in modules(package)])
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with torch.random.fork_rng(devices=[]):
        for example in doctest.DocTestFinder().find(module, name):
            runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_docstrings(package: str) -> None:
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None)
    assert names, f"{package} has no `__all__`: a package is its docstring and its table of contents"
    assert module.__doc__
    assert sorted(names) == sorted(set(names)), f"{package}.__all__ names something twice"
    missing = []
    for name in names:
        public = getattr(module, name)
        if inspect.isclass(public) or inspect.isroutine(public):  # a constant can't carry a docstring
            own = vars(public).get("__doc__") if inspect.isclass(public) else public.__doc__
            # A dataclass without docstring gets its own signature for one.
            if not own or own.startswith(f"{public.__name__}("):
                missing.append(name)
    assert not missing, f"without docstring in {package}: {', '.join(missing)}"


def test_private_modules_are_found() -> None:
    assert "legibility.losses._imitation" in list(modules("legibility.losses"))
