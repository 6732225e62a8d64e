"""Does a character transformer become easier to imitate when it meets its students half-way, and at what cost?

The source of Python's own standard library, windows of 64 characters; a fifth of the files is held out. Per seed
one base of 1500 steps is shared by all arms; each goes on for 300 steps, in which the learning rate falls to a tenth,
with its own term. Students: the default two, a convolution and a GRU, each at most 5 % of the model. Measured with a
small transformer, an LSTM, a gated convolution and an n-gram model that took no part, fitted from scratch on the
model's answers to held-out files. Controls: the plain model flattened by a temperature to the same task loss; the plain
arm stopped after 180 of the 300 steps.

Expected, as `legibility compare` prints it: change against plain of the same seed in %, with its 95 % t interval. Task
loss is cross-entropy in nats per character; the other columns are means over the four families; top-1 disagreement (in
percentage points) and code length are those of students that learn the model's top-1, so no temperature moves them.

Preset full (5 seeds, width 128, 0.63M parameters; plain: task loss 1.443, KL .753 nats, top-1 disagreement 42.5 %):

| arm | task loss | KL | code length | disagreement | patch-through KL |
|---|---|---|---|---|---|
| legibility-0.1 | +.50 +- .05 | -12.0 +- .3 | -2.2 +- .1 | -1.1 +- .2 | -15.6 +- .7 |
| its temperature, 1.10 | +.50 | -7.7 +- .7 | 0 | 0 | -10.6 +- 1.0 |
| legibility-0.3 | +3.2 +- .1 | -30.9 +- .4 | -6.0 +- .2 | -2.9 +- .1 | -36.7 +- 1.4 |
| its temperature, 1.26 | +3.2 | -20.3 +- .8 | 0 | 0 | -25.8 +- 1.3 |
| label-smoothing .1 | +5.5 +- .1 | -17.3 +- .9 | -1.5 +- .1 | -.5 +- .1 | -18.2 +- 2.4 |
| weight-decay 1.5 | +2.3 +- .1 | -11.4 +- 1.1 | -2.5 +- .3 | -1.1 +- .1 | -10.5 +- 1.5 |
| early-stop | +2.9 +- .3 | -4.6 +- 1.1 | -1.1 +- .8 | -.6 +- .6 | -4.9 +- 1.6 |

Preset quick (3 seeds, width 64, 0.17M parameters, 1024 instead of 2048 held-out windows, so less well fitted students;
plain: 1.607, .78 nats, 48.1 %):

| arm | task loss | KL | code length | disagreement | patch-through KL |
|---|---|---|---|---|---|
| legibility-0.1 | +.71 +- .12 | -13.2 +- 1.2 | -1.8 +- .6 | -1.1 +- .2 | -17.5 +- 2.0 |
| its temperature | +.71 | -9.6 +- 2.2 | 0 | 0 | -13.0 +- 2.9 |
| legibility-0.3 | +4.0 +- .5 | -33.7 +- 1.5 | -4.9 +- .6 | -2.6 +- .4 | -39.8 +- 3.2 |
| its temperature | +4.0 | -24.4 +- 3.3 | 0 | 0 | -30.5 +- 2.2 |
| label-smoothing .1 | +5.1 +- .4 | -17.9 +- 1.5 | -1.4 +- .6 | -.6 +- .7 | -19.8 +- 4.5 |
| weight-decay 1.5 | +4.1 +- .3 | -16.7 +- 4.5 | -2.9 +- 2.3 | -1.7 +- 1.4 | -18.2 +- 5.3 |
| early-stop | +3.1 +- .8 | -5.6 +- 2.1 | -1.2 +- .4 | -.7 +- 1.3 | -7.6 +- 3.6 |

So two thirds of the KL gain is what softening alone buys, of the gain in top-1 none, and a worse model is easier to
imitate by itself: compare at equal task loss only. An untrained model has the lowest KL of all (-89 %).

How it was tuned (seed 0, quick preset): label smoothing .05, .1, .2 (task loss +2.3, +5.2, +11.5; KL -10, -17, -32;
disagreement -.2, -.4, -.7) and weight decay 1, 2, 3, 5, 10 (+2.1, +6.2, +11, +23, +49; KL -9, -21, -33, -55, -85;
disagreement -.5, -1.6, -4.0, -6.7, -17); values whose task loss is near that of legibility-0.3 were taken. Legibility's
settings are the defaults; wider students (together a quarter of the model's FLOPs) move legibility-0.3 from +4.2,
KL -33, disagreement -2.5 to +2.9, -29, -2.8.
"""

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn

from legibility.recipes import Arm, Base, Control, Preset, Recipe

VOCABULARY, CONTEXT = 128, 64  # ASCII, where the last id stands for every other byte too; characters of a window
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}


def learning_rate(step: int) -> float:
    """Of its highest: rises over 100 steps, holds until step 1500, falls linearly to a tenth at step 1800."""
    return min((step + 1) / 100, 1.0) * min(max(1.0 - 0.9 * (step - 1500) / 300, 0.1), 1.0)


class CharTransformer(LightningModule):
    """A causal transformer, character ids (batch, time) -> logits of the next (batch, time, vocabulary), under AdamW.

    Args:
        width: Of the residual stream, a multiple of 4, the number of heads; ``blocks.1`` is its tap after block 1.
        depth: Number of blocks.
        lr: The learning rate at its highest.
        weight_decay: Decoupled weight decay of matrices (with the embeddings), not of biases and norms.
        label_smoothing: In the training loss only.

    Example:
        >>> CharTransformer(width=8, depth=2)(torch.zeros(5, 64, dtype=torch.long)).shape
        torch.Size([5, 64, 128])
    """

    def __init__(
        self, width: int = 64, depth: int = 3, lr: float = 3e-3, weight_decay: float = 0.1, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.characters, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        like: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 4 * width, **like) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next character."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], tokens.device)
        states = self.characters(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            states = block(states, src_mask=mask, is_causal=True)
        return self.head(self.norm(states))  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, nats per character."""
        logits, targets = self(batch[0]).flatten(0, 1), batch[1].flatten()
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.hparams["label_smoothing"])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs plain cross-entropy and accuracy on held-out files."""
        logits, targets = self(batch[0]).flatten(0, 1), batch[1].flatten()
        self.log("val_loss", nn.functional.cross_entropy(logits, targets))
        self.log("val_accuracy", (logits.argmax(-1) == targets).float().mean())

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule."""
        matrices: dict[str, Any] = {"params": [p for p in self.parameters() if p.ndim > 1]}
        others: dict[str, Any] = {"params": [p for p in self.parameters() if p.ndim < 2], "weight_decay": 0.0}
        settings = {"lr": self.hparams["lr"], "weight_decay": self.hparams["weight_decay"], "betas": (0.9, 0.95)}
        optimizer = torch.optim.AdamW([matrices, others], **settings, fused=True)
        schedule = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate), "interval": "step"}
        return [optimizer], [schedule]


class Windows:
    """Batches of random windows, inputs and next characters (size, CONTEXT) each; batch i by the seed and i only."""

    def __init__(self, text: Tensor, size: int, batches: int, seed: int) -> None:
        self.text, self.size, self.batches, self.seed = text, size, batches, seed
        self.done = 0  # of this epoch: a resumed fit goes on where it stopped

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches - self.done):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.done) % 2**63)
            self.done = (self.done + 1) % self.batches
            starts = torch.randint(len(self.text) - CONTEXT, (self.size, 1), generator=generator)
            taken = self.text[starts + torch.arange(CONTEXT + 1)].long()
            yield taken[:, :-1], taken[:, 1:]

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
        steps: Batches of an epoch, drawn by the seed of ``seed_everything`` and the rank.
        held_out: Validation windows, a multiple of 64, the same in every run.

    Example:
        >>> data = StdlibText(batch_size=2)
        >>> data.setup("fit")
        >>> tokens, targets = next(iter(data.train_dataloader()))
        >>> bool((tokens[:, 1:] == targets[:, :-1]).all())
        True
    """

    def __init__(self, batch_size: int = 16, steps: int = 1800, held_out: int = 2048) -> None:
        super().__init__()
        self.batch_size, self.steps, self.held_out = batch_size, steps, held_out

    def setup(self, stage: str) -> None:
        """Reads and splits the files; which part one is in depends on its path only."""
        root, read = Path(sysconfig.get_path("stdlib")), {"training": bytearray(), "validation": bytearray()}
        for path in sorted(p.relative_to(root) for p in root.rglob("*.py") if "sysconfigdata" not in p.name):
            part = "validation" if zlib.crc32(path.as_posix().encode()) % 5 == 0 else "training"
            read[part] += b"" if _SKIPPED & set(path.parts) else (root / path).read_bytes()
        self.text = {part: torch.frombuffer(ids, dtype=torch.uint8).clamp(max=127) for part, ids in read.items()}

    def train_dataloader(self) -> Windows:
        """Other windows on each rank."""
        rank = 0 if self.trainer is None else self.trainer.global_rank
        return Windows(self.text["training"], self.batch_size, self.steps, torch.initial_seed() + 1009 * rank)

    def val_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Random windows of the held-out files, so any part of them is as good as any other."""
        batches = list(Windows(self.text["validation"], size=64, batches=self.held_out // 64, seed=0))
        return torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


_STUDENTS = "legibility.lightning_plugins.StudentLegibility"

RECIPE = Recipe(
    name="stdlib_lm",
    question="Can a language model be easier to imitate at little cost? Characters of Python's own library.",
    arms={
        "plain": Arm(),
        "legibility-0.1": Arm(callbacks=[{"class_path": _STUDENTS, "init_args": {"strength": 0.1}}]),
        "legibility-0.3": Arm(callbacks=[{"class_path": _STUDENTS, "init_args": {"strength": 0.3}}]),
        "label-smoothing": Arm(config={"model": {"init_args": {"label_smoothing": 0.1}}}),
        "weight-decay": Arm(config={"model": {"init_args": {"weight_decay": 1.5}}}),
        "early-stop": Arm(config={"trainer": {"max_steps": 1680}}),
    },
    controls={
        "temperature-0.1": Control(kind="temperature", of="plain", matches="legibility-0.1"),
        "temperature-0.3": Control(kind="temperature", of="plain", matches="legibility-0.3"),
        "untrained": Control(kind="random-init", of="plain"),
    },
    base=Base(arm="plain", max_steps=1500),
    presets={
        "quick": Preset(seeds=(0, 1, 2), config={"data": {"init_args": {"held_out": 1024}}}, minutes=4),
        "full": Preset(seeds=(0, 1, 2, 3, 4), config={"model": {"init_args": {"width": 128, "lr": 0.002}}}, minutes=25),
    },
)
