"""A strategy is either known to be right or refused with a sentence, before it touches the model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from legibility.lightning_plugins.foundation._strategies import check_strategy


def fake(name: str, *bases: str, ranks: int = 2, device: str = "cpu") -> Any:
    """A trainer whose strategy is an instance of a class of that name with bases of those names."""
    chain: type = object
    for base in reversed([name, *bases]):
        chain = type(base, (chain,), {"root_device": torch.device(device)})
    return SimpleNamespace(strategy=chain(), world_size=ranks)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (fake("DeepSpeedStrategy", "DDPStrategy"), "DeepSpeed is not supported.*ModelParallelStrategy"),
        (fake("RayDeepSpeedStrategy", "DeepSpeedStrategy", "DDPStrategy"), "DeepSpeed is not supported"),
        (fake("XLAStrategy", "DDPStrategy"), "XLAStrategy is not supported"),
        (fake("SingleDeviceXLAStrategy", "SingleDeviceStrategy", ranks=1), "SingleDeviceXLAStrategy is not supported"),
        (fake("XLAFSDPStrategy", "ParallelStrategy"), "XLAFSDPStrategy is not supported"),
        (fake("DataParallelStrategy", "ParallelStrategy"), "DataParallelStrategy is not known.*2 ranks"),
    ],
    ids=lambda value: type(value.strategy).__name__ if not isinstance(value, str) else "",
)
def test_what_nobody_knows_to_be_right_is_refused(strategy: Any, words: str) -> None:
    with pytest.raises(NotImplementedError, match=f"`strategy`: .*{words}"):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "trainer",
    [
        fake("SingleDeviceStrategy", ranks=1),
        fake("DDPStrategy", "ParallelStrategy"),
        fake("RayDDPStrategy", "DDPStrategy"),
        fake("ModelParallelStrategy", "ParallelStrategy"),
        fake("FSDPStrategy", "ParallelStrategy", device="cuda"),
        fake("Mine", "FSDPStrategy", "ParallelStrategy"),
        fake("MyOwnStrategy", ranks=1),
    ],
    ids=lambda trainer: type(trainer.strategy).__name__,
)
def test_others_pass(trainer: Any) -> None:
    check_strategy(trainer)
