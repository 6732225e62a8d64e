"""What a recipe is, where it is found, how it is copied."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from legibility.recipes import Arm, Base, Control, Preset, Recipe
from legibility.recipes._find import copy_recipe, find, shipped

QUICK = {"quick": Preset(seeds=(0,))}


def test_a_control_says_what_it_matches_exactly_if_it_is_a_temperature() -> None:
    with pytest.raises(ValueError, match="`matches` names the arm"):
        Control(kind="temperature", of="plain")
    with pytest.raises(ValueError, match="`matches` names the arm"):
        Control(kind="random-init", of="plain", matches="other")
    with pytest.raises(ValueError, match="`kind` of a control must be"):
        Control(kind="cold", of="plain")  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,)])
def test_seeds_of_a_preset_are_different_and_not_negative(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`seeds` of a preset"):
        Preset(seeds=seeds)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "base", ".hidden"])
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a folder's name"):
        Recipe("r", "?", arms={"plain": Arm(), name: Arm()}, presets=QUICK)


def test_a_recipe_names_only_arms_that_exist() -> None:
    arms = {"plain": Arm()}
    with pytest.raises(ValueError, match=r"`baseline` is 'none'; the arms are \['plain'\]"):
        Recipe("r", "?", arms, QUICK, baseline="none")
    with pytest.raises(ValueError, match=r"`controls\['t'\]\.matches` is 'leg'"):
        Recipe("r", "?", arms, QUICK, controls={"t": Control("temperature", "plain", "leg")})
    with pytest.raises(ValueError, match=r"`base\.arm` is 'leg'"):
        Recipe("r", "?", arms, QUICK, base=Base("leg", 3))
    with pytest.raises(ValueError, match="are both `arms` and `controls`"):
        Recipe("r", "?", arms, QUICK, controls={"plain": Control("random-init", "plain")})
    with pytest.raises(ValueError, match="at least one Preset"):
        Recipe("r", "?", arms, {})


def test_recipes_are_read_without_torch() -> None:
    program = (
        "import sys; from legibility.recipes._cli import main; code = main(['ls']); "
        "found = {'torch', 'wandb', 'sklearn', 'pytorch_lightning'} & set(sys.modules); "
        "assert not found, found; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reweighted-heal" in done.stdout


def test_annotations_and_arms_of_other_recipes_need_no_import(tmp_path: Path) -> None:
    text = (
        "import no_such_module\nfrom typing import Any\nfrom legibility.recipes.digits import RECIPE as DIGITS\n"
        "from legibility.recipes import Arm, Preset, Recipe\n"
        "def _arm(x: Any, y: no_such_module.Kind = 1) -> Arm:\n    return Arm({'model': {'x': x}})\n"
        "RECIPE = Recipe('mine', '?', {'plain': _arm(2), 'other': DIGITS.arms['proximal']}, {'quick': Preset((0,))})\n"
    )
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "mine.yaml").write_text("{}")
    recipe = find(str(tmp_path / "mine.py")).recipe
    assert recipe.arms["plain"].config == {"model": {"x": 2}}
    assert recipe.arms["other"] == find("digits").recipe.arms["proximal"]


def test_every_shipped_recipe_is_found_and_names_itself() -> None:
    assert shipped()
    for name in shipped():
        assert find(name).recipe.name == name
        assert len(find(name).recipe.question.splitlines()) == 1


def test_wrong_names_are_answered_with_near_ones(toy: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no recipe 'digit': did you mean digits or sparsity_digits\? There are: .*digits"
    ):
        find("digit")
    with pytest.raises(ValueError, match=r"no recipe at \./nothing\.py: no such file"):
        find("./nothing.py")


def test_an_own_recipe_needs_its_yaml_and_its_own_name(toy: Path) -> None:
    other = toy.with_name("other.py")
    other.write_text(toy.read_text())
    with pytest.raises(ValueError, match=r"needs its YAML beside it, other\.yaml"):
        find("./other.py")
    other.with_suffix(".yaml").write_text("[1]")
    with pytest.raises(ValueError, match="RECIPE is 'toy', but the module is 'other'"):
        find("./other.py")
    other.write_text("x = 1\n")
    with pytest.raises(ValueError, match="no `RECIPE = Recipe"):
        find("./other.py")
    other.write_text("RECIPE = 3\n")
    with pytest.raises(ValueError, match=r"must be a legibility\.recipes\.Recipe, got int"):
        find("./other.py")


def test_a_recipe_that_needs_its_imports_is_imported(toy: Path) -> None:
    (toy.parent / "counted.py").write_text(
        "import math\nfrom legibility.recipes import Arm, Preset, Recipe\n"
        "RECIPE = Recipe('counted', '?', {f'a{n}': Arm() for n in range(math.isqrt(9))}, "
        "{'quick': Preset((0,))}, baseline='a0')\n"
    )
    (toy.parent / "counted.yaml").write_text("{}")
    try:
        assert list(find("./counted.py").recipe.arms) == ["a0", "a1", "a2"]
    finally:
        sys.modules.pop("counted", None)


def test_code_is_what_runs_and_not_what_is_said_about_it(toy: Path) -> None:
    before = find("./toy.py").code
    text = toy.read_text()
    toy.write_text(text.replace('"""A toy recipe."""', '"""Another text."""\n# and a comment'))
    assert find("./toy.py").code == before
    toy.write_text(text.replace('"Does it run?"', '"Really?"'))
    assert find("./toy.py").code == before
    toy.write_text(text.replace("0.01", "0.02"))
    assert find("./toy.py").code != before


def test_cp_gives_the_copy_its_own_name_everywhere(toy: Path) -> None:
    module, config = copy_recipe("./toy.py", "my_tiny.py")
    assert "toy.Model" not in config.read_text().replace("my_tiny.Model", "")
    copied = find(f"./{module}").recipe
    assert copied.name == "my_tiny"
    assert copied.arms["other"].callbacks[0]["class_path"] == "my_tiny.Other"


def test_cp_of_a_shipped_recipe(toy: Path) -> None:
    module, config = copy_recipe("digits")
    assert (module, config) == (Path("my_digits.py"), Path("my_digits.yaml"))
    read = yaml.safe_load(config.read_text())
    assert read["model"]["class_path"] == "my_digits.DigitsModel"
    assert read["trainer"]["callbacks"][0]["class_path"] == "legibility.lightning_plugins.InterpretabilityReport"
    assert find("./my_digits.py").recipe.arms == find("digits").recipe.arms


def test_cp_never_overwrites_and_takes_only_names_that_can_be_imported(toy: Path) -> None:
    copy_recipe("./toy.py", "my_tiny")
    with pytest.raises(FileExistsError, match=r"my_tiny\.py and my_tiny\.yaml already there"):
        copy_recipe("./toy.py", "my_tiny.py")
    with pytest.raises(ValueError, match="must end in a Python name"):
        copy_recipe("./toy.py", "my-toy.py")
    with pytest.raises(ValueError, match="'torch' is already installed"):
        copy_recipe("./toy.py", "torch.py")
    assert not Path("torch.py").exists()
