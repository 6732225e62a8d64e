"""The recipes of sparsity: their arms, the rival that is written here, and the scores of single units."""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from legibility.recipes._engine import check, run
from legibility.recipes._find import find
from legibility.recipes._plan import plan
from legibility.recipes.sparsity_lm import SparseChars, learning_rate

pytest.importorskip("sklearn")

from legibility.recipes.l1_for_l2 import unit_scores
from legibility.recipes.sparsity_digits import Prune

NAMES = ["sparsity_digits", "sparsity_lm", "l1_for_l2"]


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_fits_its_classes(name: str) -> None:
    preset = list(find(name).recipe.presets)[-1]
    for job in plan([name], preset=preset, seeds=[0], out=Path("runs")):
        check(job)


@pytest.mark.parametrize("name", NAMES)
def test_the_modules_are_short(name: str) -> None:
    text = find(name).path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and ast.get_docstring(node)]
    told = sum((node.body[0].end_lineno or 0) - node.body[0].lineno + 1 for node in nodes)
    assert len([line for line in text.splitlines() if line.strip()]) - told < 100


@pytest.mark.parametrize("name", ["sparsity_digits", "sparsity_lm"])
def test_every_method_has_four_strengths(name: str) -> None:
    arms = [re.sub(r"-[0-9].*$", "", arm) for arm in find(name).recipe.arms if arm not in ("plain", "l2-dropout")]
    methods = {"l1-in-loss", "proximal", "reweighted-heal", "latent", "group", "top-k", "latent-top-k", "pruning"}
    assert {method: arms.count(method) for method in methods} == dict.fromkeys(methods, 4)


def test_the_rival_prunes_step_by_step_and_all_matrices_alike() -> None:
    """Also the output projection of an attention, whose weight is read without a call."""
    torch.manual_seed(0)
    model: Any = SparseChars()
    shares: list[float] = []

    def zeros() -> float:
        matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "characters" not in name]
        matrices = [p for p in matrices if p is not model.positions.weight]
        return float(torch.cat([p.detach().flatten() == 0 for p in matrices]).float().mean())

    def step(batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
        out = [block.self_attn.out_proj.weight for block in model.blocks]
        shares.append(float(torch.cat([(w == 0).flatten() for w in out]).float().mean()))
        return loss

    model.training_step = step
    batch = (torch.randint(128, (2, 64)), torch.randint(128, (2, 64)))
    trainer = Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Prune(0.9, 1, 3)],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]
    assert zeros() == pytest.approx(0.9, abs=1e-3)
    # Two steps to an epoch; after each of three the same share of what is left goes, in this matrix too.
    assert shares[:4] == [0.0] * 4
    assert all(a < b for a, b in zip(shares[3:8:2], shares[5:10:2], strict=True))
    assert shares[-1] > 0.7


def test_the_rate_rises_holds_and_falls() -> None:
    rates = [learning_rate(step, 350) for step in range(350)]
    assert rates[0] == 1 / 50 and rates[49] == rates[175] == 1
    assert rates[262] == pytest.approx(0.55, abs=0.01) and rates[-1] == pytest.approx(0.1, abs=0.01)


def _net(first: torch.Tensor) -> nn.Sequential:
    net: Any = nn.Sequential(
        *(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5)), *(nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(128, 10),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight.copy_(first)
        net[0].bias.zero_()
        net[3].weight.copy_(torch.eye(128))
        net[3].bias.zero_()
    chain: nn.Sequential = net
    return chain


def test_units_that_mean_one_digit_each_score_higher_than_any_mixture_of_them() -> None:
    torch.manual_seed(0)
    digits = torch.arange(10).repeat(36)
    pixels = torch.zeros(360, 64)
    pixels[range(360), digits] = 1.0  # a pixel for each digit
    one_each = torch.zeros(128, 64)
    one_each[range(10), range(10)] = 1.0
    mixed = torch.zeros(128, 64)
    mixed[:, :10] = torch.randn(128, 10)
    pure, mixture = (unit_scores(_net(weight), pixels, digits) for weight in (one_each, mixed))
    assert pure["digit_selectivity"] == pytest.approx(1, abs=0.01) and pure["digit_live_units"] == 10
    assert pure["digit_coverage"] == 1 and pure["digit_completeness"] > 0.75
    assert pure["digit_selectivity_rotated"] < 0.5 and pure["digit_selectivity_permuted"] < 0.05
    assert mixture["digit_selectivity"] < 0.7 and mixture["digit_completeness"] < pure["digit_completeness"]
    assert mixture["feature_dimensionality"] < pure["feature_dimensionality"]
    dead = unit_scores(_net(torch.zeros(128, 64)), pixels, digits)
    assert math.isnan(dead["digit_selectivity"]) and dead["digit_live_units"] == 0


def test_the_record_holds_the_scores_of_units_beside_the_untrained_network(tmp_path: Path) -> None:
    jobs = plan(
        ["l1_for_l2"], preset="full", seeds=[0], out=tmp_path, arms=["l2-dropout"],
        overrides=["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"],
    )  # fmt: skip
    run(jobs[0])
    record = json.loads((jobs[0].folder / "record.json").read_text())
    scores = {score["name"]: score for score in record["scores"]}
    assert scores["exact_zero_share"]["value"] == 0
    for name in ("digit_selectivity", "digit_coverage", "digit_completeness", "feature_dimensionality"):
        assert 0 <= scores[name]["value"] <= 1 and scores[name]["control_name"] == "random-init"
        assert not scores[name]["trained_on"]
    assert scores["digit_selectivity_rotated"]["direction"] is None
