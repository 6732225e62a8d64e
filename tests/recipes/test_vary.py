"""Arms at other strengths: what is multiplied, what is named how, what comes along."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from legibility.recipes import Arm, Control, Preset, Recipe
from legibility.recipes._plan import Job, plan
from legibility.recipes._vary import has_strength, variant, vary


def callback(strength: Any, **more: Any) -> dict[str, Any]:
    return {"class_path": "a.B", "init_args": {"strength": strength, **more}}


RECIPE = Recipe(
    name="mine",
    question="?",
    arms={
        "plain": Arm(),
        "two": Arm(config={"model": {"x": 1}}, callbacks=[callback(2.0, heal=0.2), callback(8), {"class_path": "a.C"}]),
        "off": Arm(callbacks=[callback(0.0), callback(True), callback("auto")]),
        "two-x3": Arm(),
    },
    controls={"cool": Control("temperature", "plain", "two"), "raw": Control("random-init", "plain")},
    presets={"quick": Preset(seeds=(0,))},
)


def test_every_strength_of_an_arm_is_multiplied_and_nothing_else() -> None:
    varied, wanted = vary(RECIPE, ["two-x0.25"])
    assert wanted == ["two-x0.25"]
    arm = varied.arms["two-x0.25"]
    assert arm.callbacks == [callback(0.5, heal=0.2), callback(2.0), {"class_path": "a.C"}]
    assert arm.config == {"model": {"x": 1}}
    assert RECIPE.arms["two"].callbacks[0]["init_args"]["strength"] == 2.0


def test_strengths_by_pattern_are_multiplied_one_by_one() -> None:
    by_pattern = {"net.0.*": 100.0, "net.3.*": 200, "head.*": 0.0}
    mine = replace(RECIPE, arms={"plain": Arm(), "each": Arm(callbacks=[callback(by_pattern)])}, controls={})
    varied, wanted = vary(mine, None, [0.5])
    assert wanted is None
    expected = callback({"net.0.*": 50.0, "net.3.*": 100.0, "head.*": 0.0})
    assert varied.arms["each-x0.5"].callbacks == [expected]
    for nothing in ({}, {"a": 0.0}, {"a": True}, {"a": 1.0, "b": "auto"}):
        assert not has_strength(Arm(callbacks=[callback(nothing)]))
    jobs = plan(["digits"], arms=["reweighted-heal-light"], strengths=[2.0], seeds=[0], out=Path("runs"))
    assert [job.arm for job in jobs] == ["reweighted-heal-light", "reweighted-heal-light-x2"]


def test_controls_of_an_arm_come_with_its_variants() -> None:
    varied, wanted = vary(RECIPE, None, [0.5, 1.0])
    assert wanted is None
    assert set(varied.arms) == {*RECIPE.arms, "two-x0.5"}
    assert varied.controls["cool-x0.5"] == Control("temperature", "plain", "two-x0.5")
    assert set(varied.controls) == {"cool", "raw", "cool-x0.5"}
    varied, wanted = vary(RECIPE, ["cool-x4"])
    assert wanted == ["cool-x4"] and varied.controls["cool-x4"].matches == "two-x4"


def test_a_declared_arm_keeps_its_name() -> None:
    varied, wanted = vary(RECIPE, ["two-x3"])
    assert varied == RECIPE and wanted == ["two-x3"]


def test_what_has_no_strength_is_not_varied() -> None:
    assert [name for name, arm in RECIPE.arms.items() if has_strength(arm)] == ["two"]
    varied, wanted = vary(RECIPE, ["plain", "two"], [2.0])
    assert wanted == ["plain", "two", "two-x2"] and "plain-x2" not in varied.arms
    with pytest.raises(ValueError, match="'plain-x2': the arm 'plain' has no callback with a strength"):
        vary(RECIPE, ["plain-x2"])
    with pytest.raises(ValueError, match="`--strengths`: no arm among plain, off has a callback with a strength"):
        vary(RECIPE, ["plain", "off"], [2.0])


@pytest.mark.parametrize("times", [0.1, 2.0, 1 / 3, 1e-7, 123456.0])
def test_a_name_says_the_strength_exactly(times: float) -> None:
    times = float(f"{times:g}")
    varied, _ = vary(RECIPE, [variant("two", times)])
    assert varied.arms[variant("two", times)].callbacks[0]["init_args"]["strength"] == 2.0 * times


def test_plans_hold_variants_with_what_they_need() -> None:
    def named(jobs: list[Job]) -> list[str]:
        return [job.arm for job in jobs]

    out = Path("runs")
    both = plan(["digits"], arms=["plain", "proximal"], strengths=[0.5, 1.0], seeds=[0], out=out)
    assert named(both) == ["plain", "proximal", "proximal-x0.5"]
    alone = plan(["digits"], arms=["proximal-x0.5"], seeds=[0], out=out)
    assert named(alone) == ["proximal-x0.5"]
    assert alone[0].digest == both[2].digest != both[1].digest
    assert both[1].digest == plan(["digits"], arms=["proximal"], seeds=[0], out=out)[0].digest
    assert alone[0].config["trainer"]["callbacks"][-1]["init_args"]["strength"] == 12.0
    needs = plan(["stdlib_lm"], arms=["temperature-0.3-x2"], seeds=[0], out=out)
    assert named(needs) == ["base", "plain", "legibility-0.3-x2", "temperature-0.3-x2"]
    with pytest.raises(ValueError, match="no arm 'proximall-x2': did you mean proximal"):
        plan(["digits"], arms=["proximall-x2"], out=out)
