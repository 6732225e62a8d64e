"""Does a character transformer become easier to imitate when it meets its students half-way, and at what cost?

The source of Python's own standard library, 97 characters, windows of 64; a fifth of the files is held out. Per seed
one base of 1500 steps is shared by all arms; each goes on for 300 steps, in which the learning rate falls to a tenth,
with its own term. Students: the default two, a convolution and a GRU, each at most 5 % of the model. Measured with a
small transformer, an LSTM, a gated convolution and an n-gram model that took no part, fitted from scratch on the
model's answers to held-out files. Controls: the plain model flattened by a temperature to the same task loss; the plain
arm stopped after 75 of the 300 steps.

Expected, change against plain of the same seed in %, with its 95 % t interval. Task loss is cross-entropy in nats per
character; the other columns are means over the four families; top-1 disagreement and code length are those of students
that learn the model's top-1, so no temperature moves them.

Preset full (5 seeds, width 128, 0.63M parameters; plain: task loss 1.460, KL .691 nats, top-1 disagreement 40.7 %):

| arm | task loss | KL | code length | disagreement | patch-through KL |
|---|---|---|---|---|---|
| legibility-0.1 | +.39 +- .03 | -11.6 +- .2 | -2.3 +- .2 | -2.5 +- .4 | -15.2 +- .5 |
| its temperature, 1.09 | +.39 | -7.2 +- .9 | 0 | 0 | -10.4 +- 1.3 |
| legibility-0.3 | +2.7 +- .1 | -30.0 +- .5 | -6.0 +- .4 | -6.8 +- .6 | -36.4 +- .8 |
| its temperature, 1.23 | +2.7 | -18.8 +- .9 | 0 | 0 | -24.8 +- .8 |
| label-smoothing .1 | +4.7 +- .1 | -17.4 +- .4 | -1.6 +- .5 | -1.4 +- .9 | -22.2 +- 1.1 |
| weight-decay 1 | +1.8 +- .1 | -9.8 +- .2 | -2.0 +- .3 | -2.2 +- .7 | -9.7 +- 1.1 |
| early-stop | +3.7 +- .2 | -7.6 +- 1.9 | -1.4 +- 1.6 | -1.8 +- 1.6 | -10.4 +- 2.9 |

Preset quick (seeds 0 and 1, width 64, 0.17M parameters, 1024 instead of 2048 held-out windows, so less well fitted
students; plain: 1.561, .787 nats, 47.4 %):

| arm | task loss | KL | code length | disagreement | patch-through KL |
|---|---|---|---|---|---|
| legibility-0.1 | +.69 +- .56 | -12.7 +- 1.0 | -2.0 +- 1.3 | -2.4 +- .6 | -17.0 +- 5.4 |
| its temperature | +.69 | -10.0 +- 4.4 | 0 | 0 | -13.9 +- 6.8 |
| legibility-0.3 | +3.8 +- 1.9 | -32.7 +- 1.6 | -5.4 +- 2.9 | -6.4 +- .3 | -39.6 +- 4.9 |
| its temperature | +3.8 | -23.9 +- 6.1 | 0 | 0 | -30.9 +- 4.9 |
| label-smoothing .1 | +4.3 +- .6 | -17.7 +- .1 | -1.5 +- .1 | -.9 +- .7 | -22.3 +- 1.8 |
| weight-decay 1 | +3.4 +- 1.9 | -14.6 +- .1 | -3.0 +- 1.8 | -3.5 +- 2.0 | -15.0 +- 16.8 |
| early-stop | +3.5 +- 1.3 | -7.3 +- 6.6 | -1.5 +- 1.9 | -2.1 +- 4.6 | -11.7 +- 34.1 |

So nearly two thirds of the KL gain is what softening alone buys, of the gain in top-1 none, and a worse model is
easier to imitate by itself: compare at equal task loss only. An untrained model is easiest of all (KL -97 %).

How it was tuned (seed 0, quick preset): label smoothing .05, .1, .2 (task loss +1.8, +4.4, +10.6; KL -10, -17, -31;
disagreement -1, -1, -3) and weight decay .5, 1, 2, 5 (+.6, +3, +6, +27; KL -4, -15, -24, -62; disagreement -1, -5, -7,
-26); the values whose task loss is near that of legibility-0.3 were taken. Legibility's settings are the defaults;
wider students (together a quarter of the model's FLOPs) move legibility-0.3 from +3.4, KL -32, disagreement -8 to +2.4,
-29, -8. Without the fall of the learning rate the effects are much the same, and all models worse by .1 nats.
"""

import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from legibility.recipes import Arm, Base, Control, Preset, Recipe

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1  # the last id stands for every other byte
_IDS = bytes(CHARACTERS.find(chr(byte)) % VOCABULARY for byte in range(256))
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}


class Block(nn.Module):
    """Pre-norm causal attention and an MLP of four times the width: (batch, time, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, states: Tensor) -> Tensor:
        """The states after the block."""
        projected = self.project(self.attention_norm(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.join(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = states + self.mlp(self.mlp_norm(states))
        return mixed


class Transformer(nn.Module):
    """Character ids (batch, time), time <= context -> logits of the next character (batch, time, vocabulary)."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        states: Tensor = self.characters(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(self.norm(states))
        return logits


class CharTransformer(LightningModule):
    """The transformer under AdamW: the learning rate warms up, holds, and from `decay_from` on falls to a tenth.

    Args:
        width: Of the residual stream, a multiple of `heads`.
        depth: Number of blocks; block 1's residual stream is the tap ``net.blocks.1``.
        heads: Attention heads of each block.
        context: Longest input.
        learning_rate: At its highest.
        weight_decay: Decoupled weight decay of the matrices; not of biases, norms and embeddings.
        label_smoothing: In the training loss only.
        warmup_steps: Over which the learning rate rises.
        decay_from: Step from which it falls, linearly until the fit's last; None: it does not.

    Example:
        >>> CharTransformer(width=8, depth=2, heads=2)(torch.zeros(5, 64, dtype=torch.long)).shape
        torch.Size([5, 64, 97])
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        context: int = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        label_smoothing: float = 0.0,
        warmup_steps: int = 100,
        decay_from: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Transformer(width, depth, heads, context)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next character."""
        logits: Tensor = self.net(tokens)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, nats per character."""
        logits, targets = self(batch[0]).flatten(0, 1), batch[1].flatten()
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs plain cross-entropy and accuracy on held-out files."""
        logits, targets = self(batch[0]).flatten(0, 1), batch[1].flatten()
        self.log("val_loss", functional.cross_entropy(logits, targets))
        self.log("val_accuracy", (logits.argmax(-1) == targets).float().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW that decays matrices only, and the schedule."""
        decayed = [module.weight for module in self.modules() if isinstance(module, nn.Linear)]
        others = [p for p in self.parameters() if not any(p is weight for weight in decayed)]
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": others, "weight_decay": 0},
        ]
        optimizer = torch.optim.AdamW(groups, self.hparams["learning_rate"], betas=(0.9, 0.95), fused=True)
        last = int(self.trainer.estimated_stepping_batches)
        rise, start = int(self.hparams["warmup_steps"]), int(self.hparams["decay_from"] or last)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / rise) * (1.0 - 0.9 * max(0, step - start) / max(1, last - start))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and next characters of windows that begin at `starts`: (starts, context) each."""
    taken = text[starts.unsqueeze(1) + torch.arange(context + 1)].long()
    return taken[:, :-1], taken[:, 1:]


class Batches:
    """Random windows: batch i depends on the seed and on i only, so a resumed fit goes on where it stopped."""

    def __init__(self, text: Tensor, size: int, context: int, steps_per_epoch: int, seed: int) -> None:
        self.text, self.size, self.context, self.steps, self.seed = text, size, context, steps_per_epoch, seed
        self.done = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps - self.done % self.steps):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.done) % 2**63)
            self.done += 1
            starts = torch.randint(len(self.text) - self.context, (self.size,), generator=generator)
            yield windows(self.text, starts, self.context)

    def state_dict(self) -> dict[str, int]:
        """Lightning puts this into its checkpoints."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after the last batch that was given out."""
        self.done = state["done"]


class StdlibText(LightningDataModule):
    """The source of this Python's standard library without tests and tables, 9 MB; a fifth of the files is held out.

    Args:
        batch_size: Windows of a training batch.
        context: Characters of a window.
        steps_per_epoch: Batches of an epoch; every epoch draws new ones, by the seed of ``seed_everything``.
        held_out: Number of validation windows, spread evenly over the held-out files, the same in every run.

    Example:
        >>> data = StdlibText(batch_size=2, context=8)
        >>> data.setup("fit")
        >>> tokens, targets = next(iter(data.train_dataloader()))
        >>> bool((tokens[:, 1:] == targets[:, :-1]).all())
        True
    """

    def __init__(
        self, batch_size: int = 16, context: int = 64, steps_per_epoch: int = 1800, held_out: int = 2048
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Reads and splits the files; which part one is in depends on its path only."""
        self.files: dict[str, list[str]] = {"training": [], "validation": []}
        root = Path(sysconfig.get_path("stdlib"))
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - _SKIPPED)
            for name in sorted(name for name in names if name.endswith(".py") and "sysconfigdata" not in name):
                path = (Path(folder) / name).relative_to(root).as_posix()
                self.files["validation" if zlib.crc32(path.encode()) % 5 == 0 else "training"].append(path)
        read = {part: b"".join((root / path).read_bytes() for path in paths) for part, paths in self.files.items()}
        self.text = {p: torch.frombuffer(bytearray(raw.translate(_IDS)), dtype=torch.uint8) for p, raw in read.items()}

    def train_dataloader(self) -> Batches:
        """Batches of random windows, other ones on each rank."""
        rank = 0 if self.trainer is None else self.trainer.global_rank
        chosen = {name: self.hparams[name] for name in ("context", "steps_per_epoch")}
        seed = torch.initial_seed() + 1009 * rank
        return Batches(self.text["training"], self.hparams["batch_size"], seed=seed, **chosen)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The held-out windows in an order drawn once, so that any part of them is as good as any other."""
        text, context, count = self.text["validation"], self.hparams["context"], self.hparams["held_out"]
        starts = torch.linspace(0, len(text) - context - 1, count, dtype=torch.float64).long()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(*windows(text, starts[order], context)), batch_size=64)


_STUDENTS = "legibility.lightning_plugins.StudentLegibility"
_LARGE = {"width": 128, "learning_rate": 0.002}

RECIPE = Recipe(
    name="stdlib_lm",
    question="Can a language model be easier to imitate at little cost? Characters of Python's own library.",
    arms={
        "plain": Arm(),
        "legibility-0.1": Arm(callbacks=[{"class_path": _STUDENTS, "init_args": {"strength": 0.1}}]),
        "legibility-0.3": Arm(callbacks=[{"class_path": _STUDENTS, "init_args": {"strength": 0.3}}]),
        "label-smoothing": Arm(config={"model": {"init_args": {"label_smoothing": 0.1}}}),
        "weight-decay": Arm(config={"model": {"init_args": {"weight_decay": 1.0}}}),
        "early-stop": Arm(config={"trainer": {"max_steps": 1575}}),
    },
    controls={
        "temperature-0.1": Control(kind="temperature", of="plain", matches="legibility-0.1"),
        "temperature-0.3": Control(kind="temperature", of="plain", matches="legibility-0.3"),
        "untrained": Control(kind="random-init", of="plain"),
    },
    base=Base(arm="plain", max_steps=1500),
    presets={
        "quick": Preset(seeds=(0, 1), config={"data": {"init_args": {"held_out": 1024}}}, minutes=4),
        "full": Preset(seeds=(0, 1, 2, 3, 4), config={"model": {"init_args": _LARGE}}, minutes=25),
    },
)
