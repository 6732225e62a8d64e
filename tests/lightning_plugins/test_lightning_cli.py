"""The callbacks by class path in a user's own LightningCLI."""

import importlib
from pathlib import Path
from typing import Any

from tiny import loader, make_module

from legibility.lightning_plugins import InterpretabilityReport, L1InsteadOfL2, L1Sparsity, StudentLegibility
from legibility.students import FourierStudent, MLPStudent

YAML = """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: legibility.lightning_plugins.StudentLegibility
      init_args:
        strength: 0.3
        taps: ["net.1"]
        students:
          - class_path: legibility.students.MLPStudent
            init_args: {width: 8, depth: 1}
          - legibility.students.MLPStudent
    - class_path: legibility.lightning_plugins.L1Sparsity
      init_args: {strength: 1.0}
    - legibility.lightning_plugins.L1InsteadOfL2
    - class_path: legibility.lightning_plugins.InterpretabilityReport
      init_args:
        held_out:
          - class_path: legibility.students.FourierStudent
            init_args: {width: 16}
        queries: 64
        passes: 1
        progress: false
        folder: FOLDER
"""


def test_everything_from_yaml(pl: Any, tmp_path: Path) -> None:
    cli = importlib.import_module(f"{pl.__name__}.cli").LightningCLI
    module = type(make_module(pl))

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return loader(64)

        def val_dataloader(self) -> Any:
            return loader(64)

    config = tmp_path / "mine.yaml"
    config.write_text(YAML.replace("FOLDER", str(tmp_path)))
    # The default SaveConfigCallback stays on: it writes the configuration, so every argument must be representable.
    arguments = ["fit", "--config", str(config), f"--trainer.default_root_dir={tmp_path}"]
    ran = cli(module, Data, args=arguments)
    ours = ran.trainer.callbacks[:4]
    assert [type(c) for c in ours] == [StudentLegibility, L1Sparsity, L1InsteadOfL2, InterpretabilityReport]
    assert ours[0].students == [MLPStudent(width=8, depth=1), MLPStudent()]
    assert ours[3].families.students == [FourierStudent(width=16)]
    assert (tmp_path / "record.json").is_file()
