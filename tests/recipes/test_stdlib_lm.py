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
from legibility.recipes.stdlib_lm import CHARACTERS, VOCABULARY, Batches, CharTransformer, StdlibText, windows

PATH = Path(legibility.recipes.__file__).with_name("stdlib_lm.py")


@pytest.fixture(scope="module")
def text() -> StdlibText:
    data = StdlibText(batch_size=4, context=16, steps_per_epoch=5, held_out=48)
    data.setup("fit")
    return data


def small(**options: Any) -> CharTransformer:
    torch.manual_seed(0)
    return CharTransformer(width=8, depth=2, heads=2, context=16, **options)


def trainer(steps: int, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(max_steps=steps, accelerator="cpu", devices=1, enable_progress_bar=False, **quiet, **options)


def fit(steps: int, start: Path | None = None, **options: Any) -> tuple[Trainer, CharTransformer]:
    seed_everything(5)
    model, own = small(decay_from=4, warmup_steps=2, **options), trainer(steps, num_sanity_val_steps=0)
    data = StdlibText(batch_size=4, context=16, steps_per_epoch=100, held_out=48)
    own.fit(model, datamodule=data, ckpt_path=start)
    return own, model


def test_no_file_is_in_both_parts_and_the_parts_are_the_library(text: StdlibText) -> None:
    training, validation = set(text.files["training"]), set(text.files["validation"])
    assert not training & validation
    everything = training | validation
    assert {"json/decoder.py", "textwrap.py", "collections/__init__.py"} <= everything
    assert not [path for path in everything if set(path.split("/")) & {"site-packages", "test", "idlelib"}]
    # A fifth of the files, by a hash of the path.
    assert 0.1 < len(validation) / len(everything) < 0.3
    assert len(text.text["training"]) > 3e6
    assert len(text.text["validation"]) > 3e5


def test_characters_are_printable_ascii_newline_and_one_for_the_rest(text: StdlibText) -> None:
    assert VOCABULARY == 97  # 95 printable, newline, the rest
    assert CHARACTERS[0] == "\n"
    source = Path(ast.__file__).parent / text.files["training"][0]
    raw = source.read_bytes()
    ids = text.text["training"][: len(raw)].tolist()
    assert [CHARACTERS[i] if i < 96 else "?" for i in ids] == [chr(b) if chr(b) in CHARACTERS else "?" for b in raw]
    assert int(text.text["training"].max()) <= 96


def test_windows_are_consecutive_characters_and_targets_are_the_next() -> None:
    tokens, targets = windows(torch.arange(10, dtype=torch.uint8), torch.tensor([0, 6]), 3)
    assert tokens.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert targets.tolist() == [[1, 2, 3], [7, 8, 9]]  # 6 is the last start that fits: it needs 6, 7, 8, 9
    assert tokens.dtype == torch.long


def test_training_reaches_the_last_character_and_no_further() -> None:
    batches = Batches(torch.arange(6, dtype=torch.uint8), size=64, context=4, steps_per_epoch=3, seed=0)
    starts = {int(tokens[0]) for batch in batches for tokens in batch[0]}
    assert starts == {0, 1}  # 1 is the last: 1, 2, 3, 4 and the target 5


def test_batch_i_depends_on_the_seed_and_on_i_only(text: StdlibText) -> None:
    def batches(seed: int, done: int = 0) -> list[Tensor]:
        made = Batches(text.text["training"], 4, 16, 5, seed)
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
    assert len({tuple(tokens.flatten().tolist()) for tokens in first}) == 10


def test_an_unseeded_program_can_train_too(text: StdlibText) -> None:
    tokens, _ = next(iter(Batches(text.text["training"], 4, 16, 5, seed=2**64 - 1)))
    assert tokens.shape == (4, 16)


def test_ranks_see_other_batches_of_the_same_seed() -> None:
    def first(rank: int) -> Tensor:
        torch.manual_seed(3)
        data = StdlibText(batch_size=4, context=16)
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
    assert torch.cat(once).shape == (48, 16)
    assert len(torch.unique(torch.cat(once), dim=0)) == 48


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
    assert {names[id(p)] for p in decayed["params"]} == {
        *(f"net.blocks.{b}.{m}.weight" for b in (0, 1) for m in ("project", "join", "mlp.0", "mlp.2")),
        "net.head.weight",
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    rates = []

    class Watching(CharTransformer):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    data = StdlibText(batch_size=2, context=16, steps_per_epoch=100, held_out=48)
    model = Watching(width=8, depth=1, heads=1, context=16, learning_rate=1.0, warmup_steps=2, decay_from=4)
    trainer(9, num_sanity_val_steps=0).fit(model, datamodule=data)
    # (s + 1) / 2 until 1, then 1 - 0.9 (s - 4) / (9 - 4).
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28])


def test_fitting_lowers_the_loss_and_logs_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    model = small(label_smoothing=0.9, learning_rate=1e-2, warmup_steps=1)
    data = StdlibText(batch_size=8, context=16, steps_per_epoch=3, held_out=48)
    own = trainer(3)
    own.fit(model, datamodule=data)
    logged = {name: float(value) for name, value in own.callback_metrics.items()}
    assert set(logged) == {"train_loss", "val_loss", "val_accuracy"}
    tokens, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        logits = model.eval()(tokens)
        plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        untrained = torch.nn.functional.cross_entropy(small()(tokens).flatten(0, 1), targets.flatten())
    assert logged["val_loss"] == pytest.approx(float(plain), rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).float().mean()), rel=1e-5)
    assert logged["train_loss"] > logged["val_loss"]  # smoothed against plain
    assert float(plain) < float(untrained)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    _, whole = fit(6)
    # The base ends where the learning rate begins to fall, so its own end leaves no trace.
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
            model = job.config["model"]["init_args"]
            assert model["context"] == data["context"]
            assert model["decay_from"] == recipe.base.max_steps
            assert settings["max_steps"] <= data["steps_per_epoch"]  # an endless epoch, so resuming is exact
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
