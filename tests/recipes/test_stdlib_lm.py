"""The recipe `stdlib_lm`: its text, its transformer, its arms."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor

import legibility.recipes
from legibility.recipes._engine import check
from legibility.recipes._find import find
from legibility.recipes._plan import plan
from legibility.recipes.stdlib_lm import CONTEXT, VOCABULARY, CharTransformer, StdlibText, Windows, learning_rate

PATH = Path(legibility.recipes.__file__).with_name("stdlib_lm.py")


@pytest.fixture(scope="module")
def text() -> StdlibText:
    data = StdlibText(batch_size=4, steps=5, held_out=128)
    data.setup("fit")
    return data


def small(**options: Any) -> CharTransformer:
    torch.manual_seed(0)
    return CharTransformer(width=8, depth=2, **options)


def trainer(steps: int, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(max_steps=steps, accelerator="cpu", devices=1, enable_progress_bar=False, **quiet, **options)


def fit(steps: int, start: Path | None = None, **options: Any) -> tuple[Trainer, CharTransformer]:
    seed_everything(5)
    model, own = small(**options), trainer(steps, num_sanity_val_steps=0)
    data = StdlibText(batch_size=4, steps=100, held_out=64)
    own.fit(model, datamodule=data, ckpt_path=start)
    return own, model


def test_no_file_is_in_both_parts_and_the_parts_are_the_library(text: StdlibText) -> None:
    parts = {name: bytes(ids.tolist()) for name, ids in text.text.items()}
    root, shares = Path(ast.__file__).parent, {"training": 0, "validation": 0}
    for name in ("json/decoder.py", "textwrap.py", "collections/__init__.py", "ast.py", "csv.py", "shlex.py"):
        source = bytes(min(byte, 127) for byte in (root / name).read_bytes())
        assert (source in parts["training"]) + (source in parts["validation"]) == 1, name
        shares["training" if source in parts["training"] else "validation"] += 1
    assert min(shares.values()) > 0
    for skipped in ("idlelib/config.py", "encodings/cp1252.py"):
        if (root / skipped).is_file():
            source = bytes(min(byte, 127) for byte in (root / skipped).read_bytes())
            assert not any(source in part for part in parts.values())
    # A fifth of the files, by a hash of the path.
    assert 0.1 < len(parts["validation"]) / len(parts["training"]) < 0.4
    assert len(parts["training"]) > 3e6


def test_ids_are_ascii_and_one_for_the_rest(text: StdlibText) -> None:
    assert VOCABULARY == 128
    assert all(int(ids.max()) <= 127 for ids in text.text.values())
    assert b"def " in bytes(text.text["training"][:100_000].tolist())


def test_windows_are_consecutive_characters_and_targets_are_the_next() -> None:
    ids = torch.arange(CONTEXT + 2, dtype=torch.uint8)
    starts = set()
    for tokens, targets in Windows(ids, size=64, batches=3, seed=0):
        assert tokens.dtype == torch.long
        assert tokens.shape == targets.shape == (64, CONTEXT)
        assert torch.equal(tokens - tokens[:, :1], torch.arange(CONTEXT).expand(64, -1))
        assert torch.equal(targets, tokens + 1)
        starts |= set(tokens[:, 0].tolist())
    assert starts == {0, 1}  # 1 is the last start: its last target is the last character


def test_batch_i_depends_on_the_seed_and_on_i_only(text: StdlibText) -> None:
    def batches(seed: int, done: int = 0) -> list[Tensor]:
        made = Windows(text.text["training"], 4, 5, seed)
        made.load_state_dict({"done": done})
        return [tokens for tokens, _ in [*made, *made]]  # an epoch's rest, and one more epoch

    first = batches(3)
    assert len(first) == 10
    torch.randn(3)
    assert all(torch.equal(*pair) for pair in zip(first, batches(3), strict=True))
    resumed = batches(3, done=2)
    assert len(resumed) == 8
    assert all(torch.equal(*pair) for pair in zip(first[2:], resumed, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first, batches(4), strict=True))
    assert len({tuple(tokens.flatten().tolist()) for tokens in first[:5]}) == 5


def test_an_unseeded_program_can_train_too(text: StdlibText) -> None:
    tokens, _ = next(iter(Windows(text.text["training"], 4, 5, seed=2**64 - 1)))
    assert tokens.shape == (4, CONTEXT)


def test_ranks_see_other_batches_of_the_same_seed() -> None:
    def first(rank: int) -> Tensor:
        torch.manual_seed(3)
        data = StdlibText(batch_size=4)
        data.trainer = SimpleNamespace(global_rank=rank)  # type: ignore[assignment]
        data.setup("fit")
        return next(iter(data.train_dataloader()))[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(0), first(1))


def test_validation_windows_are_the_same_in_every_run(text: StdlibText) -> None:
    once = [batch[0] for batch in text.val_dataloader()]
    torch.manual_seed(99)
    again = [batch[0] for batch in text.val_dataloader()]
    assert torch.equal(torch.cat(once), torch.cat(again))
    assert torch.cat(once).shape == (128, CONTEXT)
    assert len(torch.unique(torch.cat(once), dim=0)) == 128


def test_logits_see_the_past_only() -> None:
    model = small().eval()
    tokens = torch.randint(VOCABULARY, (3, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert before.shape == (3, 16, VOCABULARY)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.isclose(before[:, 9:], after[:, 9:]).all(-1).any()
    assert torch.allclose(model(tokens[:, :5]), before[:, :5], atol=1e-5)  # a shorter input is a prefix


def test_only_matrices_are_decayed_and_every_parameter_is_trained_once() -> None:
    own, model = fit(1, weight_decay=0.5)
    decayed, others = own.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inner = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert {names[id(p)] for p in decayed["params"]} == {
        *(f"blocks.{block}.{name}" for block in (0, 1) for name in inner),
        *("characters.weight", "positions.weight", "head.weight"),
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    shape = [learning_rate(step) for step in (0, 49, 99, 1500, 1650, 1800, 5000)]
    assert shape == pytest.approx([0.01, 0.5, 1, 1, 0.55, 0.1, 0.1])
    own, _ = fit(5, lr=1.0)
    assert own.optimizers[0].param_groups[0]["lr"] == pytest.approx(learning_rate(5))  # each step, not each epoch


def test_fitting_lowers_the_loss_and_logs_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    model = small(label_smoothing=0.5, lr=1e-1)
    data = StdlibText(batch_size=8, steps=10, held_out=64)
    own = trainer(10)
    own.fit(model, datamodule=data)
    logged = {name: float(value) for name, value in own.callback_metrics.items()}
    assert set(logged) == {"val_loss", "val_accuracy"}
    tokens, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        logits = model.eval()(tokens)
        plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        untrained = torch.nn.functional.cross_entropy(small()(tokens).flatten(0, 1), targets.flatten())
    assert logged["val_loss"] == pytest.approx(float(plain), rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).float().mean()), rel=1e-5)
    assert float(plain) < float(untrained)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    _, whole = fit(6)
    first, _ = fit(4)
    first.save_checkpoint(tmp_path / "base.ckpt")
    own, resumed = fit(6, start=tmp_path / "base.ckpt")
    assert own.global_step == 6
    pairs = zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for (_, value), other in pairs)


def test_every_arm_of_every_preset_parses_and_validates_before_it_ends(tmp_path: Path) -> None:
    recipe = find(str(PATH)).recipe
    assert recipe.base is not None
    for preset in recipe.presets:
        jobs = plan(["stdlib_lm"], preset=preset, seeds=[0], out=tmp_path)
        for job in jobs:
            check(job)
            settings, data = job.config["trainer"], job.config["data"]["init_args"]
            assert data["held_out"] % 64 == 0
            assert learning_rate(recipe.base.max_steps) == 1 > learning_rate(recipe.base.max_steps + 1)
            assert settings["max_steps"] <= data["steps"]  # an endless epoch, so resuming is exact
            if job.arm != "base":
                assert settings["max_steps"] % settings["val_check_interval"] == 0
                (report,) = (c for c in settings["callbacks"] if c["class_path"].endswith("InterpretabilityReport"))
                assert report["init_args"]["queries"] >= data["held_out"]
        assert jobs[0].arm == "base"


def test_the_recipe_is_read_without_torch() -> None:
    program = (
        "import sys; from legibility.recipes._find import find; find('stdlib_lm'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
