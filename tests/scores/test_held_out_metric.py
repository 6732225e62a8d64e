import math
import pickle

import pytest
import torch

from legibility.scores import HeldOutImitation, Queries, held_out_imitation, held_out_twin
from legibility.students import LinearStudent, MLPStudent

STUDENTS = [LinearStudent(), MLPStudent()]
Batch = dict[str, torch.Tensor]


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 6, generator=generator)
    logits = inputs @ torch.randn(6, 4, generator=generator)
    labels = torch.randint(0, 4, (96,), generator=generator)
    return {"inputs": inputs, "logits": logits, "labels": labels, "tap": inputs[:, :3] * 2}


def test_equals_the_function_and_names_everything(batch: Batch) -> None:
    queries = Queries(batch["inputs"], batch["logits"], batch["labels"], taps={"block.1": batch["tap"]})
    twin = held_out_twin(queries, STUDENTS, passes=1)
    found = held_out_imitation(queries, STUDENTS, twin=twin, passes=1)
    metric = HeldOutImitation(STUDENTS, taps=["block.1"], passes=1)
    for rows in torch.split(torch.arange(96), 40):
        metric.update(
            batch["inputs"][rows], batch["logits"][rows], batch["labels"][rows], taps={"block.1": batch["tap"][rows]}
        )
    values = metric.compute()
    scores = ["kl", "relative_kl", "disagreement", "code_length", "saving", "adjusted_saving", "surplus"]
    names = [f"{family}/{score}" for family in ("linear", "mlp", "median") for score in [*scores, "fvu/block.1", "cka/block.1"]]
    assert set(values) == {*names, "max/saving", "max/adjusted_saving"}
    for name, imitation in found.items():
        assert values[f"{name}/kl"].item() == imitation.kl
        assert values[f"{name}/adjusted_saving"].item() == imitation.adjusted_saving
        assert values[f"{name}/fvu/block.1"].item() == imitation.fvu["block.1"]
    middle = (found["linear"].saving + found["mlp"].saving) / 2  # of two: their mean
    assert values["median/saving"].item() == pytest.approx(middle, abs=1e-12)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in values.values())
    metric.reset()
    metric.update(batch["inputs"][:40], batch["logits"][:40], taps={"block.1": batch["tap"][:40]})
    assert metric.compute()["linear/adjusted_saving"].isnan()  # no labels this time


def test_twin_from_the_cache_is_used(batch: Batch) -> None:
    metric = HeldOutImitation([LinearStudent()], twin={"linear": 0.25}, passes=1)
    metric.update(batch["inputs"], batch["logits"])
    values = metric.compute()
    assert values["linear/adjusted_saving"].item() == pytest.approx(values["linear/saving"].item() - 0.25)


def test_median_leaves_out_what_has_no_value(batch: Batch) -> None:
    metric = HeldOutImitation(STUDENTS, passes=1)
    metric.update(batch["inputs"], torch.zeros(96, 4))
    assert all(math.isnan(value.item()) for value in metric.compute().values())  # constant: none has


def test_pickles_between_updates(batch: Batch) -> None:
    metric = HeldOutImitation([LinearStudent()], passes=1)
    metric.update(batch["inputs"][:50], batch["logits"][:50])
    copied = pickle.loads(pickle.dumps(metric))
    for each in (metric, copied):
        each.update(batch["inputs"][50:], batch["logits"][50:])
    assert metric.compute()["linear/kl"] == copied.compute()["linear/kl"]


def test_errors(batch: Batch) -> None:
    metric = HeldOutImitation([LinearStudent()], taps=["a"])
    with pytest.raises(ValueError, match=r"`taps` must be \['a'\] as announced, got \[\]"):
        metric.update(batch["inputs"], batch["logits"])
    metric = HeldOutImitation([LinearStudent()])
    metric.update(batch["inputs"], batch["logits"])
    with pytest.raises(ValueError, match="`labels` must be given on every update or on none"):
        metric.update(batch["inputs"], batch["logits"], batch["labels"])
    metric.reset()
    metric.update(batch["inputs"], batch["logits"], batch["labels"])
    with pytest.raises(ValueError, match="`labels` must be given on every update or on none"):
        metric.update(batch["inputs"], batch["logits"])
    metric.reset()
    metric.update(batch["inputs"][:20], batch["logits"][:20])
    with pytest.raises(ValueError, match="`logits` must answer at least 32 queries, got 20"):
        metric.compute()
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="`update` must have been given queries before `compute`"),
    ):
        metric.compute()
