"""The recipe `digits`: its data, its model, its YAML in a LightningCLI of one's own."""

import ast
import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningCLI

import legibility.recipes
from legibility.recipes._engine import check
from legibility.recipes._find import find
from legibility.recipes._plan import plan

pytest.importorskip("sklearn")

from legibility.recipes.digits import DigitsData, DigitsModel

YAML = Path(legibility.recipes.__file__).with_name("digits.yaml")


def parts(seed: int) -> dict[str, tuple[torch.Tensor, ...]]:
    torch.manual_seed(seed)
    data = DigitsData()
    data.setup("fit")
    return {name: part.tensors for name, part in data.parts.items()}


def test_the_split_is_a_partition_and_follows_the_seed_alone() -> None:
    first = parts(3)
    torch.randn(5)  # what was drawn since does not matter
    again = parts(3)
    assert [len(part[0]) for part in first.values()] == [1078, 359, 360]
    assert all(torch.equal(first[name][0], again[name][0]) for name in first)
    assert not torch.equal(first["test"][0], parts(4)["test"][0])
    everything = torch.cat([part[0] for part in first.values()])
    assert everything.shape == (1797, 64)
    assert float(everything.max()) == 1.0
    # Each digit is in one part only: as many different images in all as in the parts together.
    unique = [len(torch.unique(part[0], dim=0)) for part in first.values()]
    assert sum(unique) == len(torch.unique(everything, dim=0))


def test_an_epoch_holds_every_training_digit_once_in_whole_batches() -> None:
    torch.manual_seed(0)
    data = DigitsData(batch_size=128)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch[1]) for batch in batches] == [128] * 8 + [54]  # 1078 = 8 * 128 + 54
    seen = torch.cat([batch[0] for batch in batches])
    assert torch.equal(torch.unique(seen, dim=0), torch.unique(data.parts["training"].tensors[0], dim=0))
    (held_out,) = data.val_dataloader()
    assert torch.equal(held_out[0], data.parts["validation"].tensors[0])
    with pytest.raises(ValueError, match='`held_out` must be "validation" or "test", got \'training\''):
        DigitsData(held_out="training")


def test_l1_in_the_loss_is_the_sum_over_weight_matrices() -> None:
    torch.manual_seed(0)
    plain, penalised = DigitsModel(), DigitsModel(l1=0.01)
    penalised.load_state_dict(plain.state_dict())
    batch = (torch.rand(4, 64), torch.tensor([0, 1, 2, 3]))
    total = sum(float(layer.weight.abs().sum()) for layer in plain.net if isinstance(layer, torch.nn.Linear))
    assert math.isclose(
        float(penalised.training_step(batch, 0)) - float(plain.training_step(batch, 0)), 0.01 * total, rel_tol=1e-4
    )


def test_dropout_and_decay_reach_the_model() -> None:
    model = DigitsModel(weight_decay=0.3, dropout=0.4)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=DigitsData())
    assert [layer.p for layer in model.net if isinstance(layer, torch.nn.Dropout)] == [0.4, 0.4]
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.3
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)  # half a cosine, to its end


def test_the_yaml_works_in_a_lightning_cli_of_ones_own(tmp_path: Path) -> None:
    cli = LightningCLI(
        args=[
            *("fit", "--config", str(YAML), "--trainer.max_epochs=1", "--trainer.logger=false"),
            *("--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"),
            *("--trainer.check_val_every_n_epoch=1", f"--trainer.default_root_dir={tmp_path}"),
            *("--trainer.callbacks.queries=64", "--trainer.callbacks.passes=1"),
        ],
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
    )
    assert isinstance(cli.model, DigitsModel)
    assert cli.trainer.global_step == 9
    assert list(tmp_path.rglob("record.json"))


def test_every_arm_and_preset_fits_its_classes() -> None:
    for preset in find("digits").recipe.presets:
        for job in plan(["digits"], preset=preset, seeds=[0], out=Path("runs")):
            check(job)


def test_the_module_is_short() -> None:
    text = find("digits").path.read_text()
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    told = sum((node.body[0].end_lineno or 0) - node.body[0].lineno + 1 for node in nodes)
    code = [line for line in text.splitlines() if line.strip()]
    assert len(code) - told < 100
