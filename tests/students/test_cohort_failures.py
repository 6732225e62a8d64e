"""When a student fails, when the primary does, and when a student becomes active."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from legibility.students import Cohort, ConvStudent, GRUStudent, MLPStudent, Signature, Student

TEXT = [ConvStudent(width=8), GRUStudent(width=8), MLPStudent(width=8)]


def _step(cohort: Cohort, signature: Signature, draw: Callable[..., Tensor], step: int, *, bad: str = "") -> None:
    inputs = draw(signature, 4, seed=step)
    generator = torch.Generator().manual_seed(step)
    output = 2 * torch.randn(4, 6, 7, generator=generator)
    tap = torch.randn(4, 6, 5, generator=generator)
    if bad == "output":
        output[1, 2, 3] = torch.nan
    if bad == "infinite":
        output[1, 2, 3] = torch.inf
    if bad == "tap":
        tap[0, 0, 0] = torch.inf
    cohort.learn(cohort.predict(inputs), output, {"block.0": tap})
    cohort.step()


def _weights(cohort: Cohort, *names: str) -> dict[str, Tensor]:
    return {f"{s}/{n}": t.clone() for s in names for n, t in cohort.networks[s].state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _poison_loss(network: nn.Module) -> None:
    with torch.no_grad():
        next(network.body.parameters()).fill_(torch.nan)  # type: ignore[union-attr]


def _poison_gradient(network: nn.Module) -> None:
    parameter = next(network.parameters())
    parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("poison", "reason"), [(_poison_loss, "its loss became nan"), (_poison_gradient, "its gradient became inf")]
)
def test_a_failed_student_is_dropped_and_the_others_never_notice(
    poison: Callable[[nn.Module], None], reason: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    hit, well = Cohort(TEXT, signature), Cohort([TEXT[0], TEXT[2]], signature)
    for step in range(6):
        if step == 3:
            poison(hit.networks["gru"])
        _step(hit, signature, draw, step)
        _step(well, signature, draw, step)
        assert _same(_weights(hit, "conv", "mlp"), _weights(well, "conv", "mlp"))
    assert hit.failed == {"gru": reason}
    assert list(hit.networks) == ["conv", "mlp"]
    assert hit.names == ["conv", "gru", "mlp"]
    assert hit.active["gru"] is False
    assert [name for name, _ in hit.predict(draw(signature))] == ["conv", "mlp"]
    held = {id(p) for group in hit._optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for network in hit.networks.values() for p in network.parameters()}
    assert len(hit._optimizer.state) == len(held)


def test_a_failure_can_stop_the_run(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature, on_failure="raise")
    _step(cohort, signature, draw, 0)
    before = _weights(cohort, "conv", "mlp")
    _poison_loss(cohort.networks["gru"])
    with pytest.raises(RuntimeError, match="A student failed .`gru`: its loss became nan.*on_failure='drop'"):
        _step(cohort, signature, draw, 1)
    assert _same(_weights(cohort, "conv", "mlp"), before)


def test_all_students_failed(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    for network in cohort.networks.values():
        _poison_gradient(network)
    for step in range(3):
        _step(cohort, signature, draw, step)
    assert list(cohort.failed) == ["conv", "gru", "mlp"]
    assert cohort.predict(draw(signature)) == []
    assert cohort.active == {"conv": False, "gru": False, "mlp": False}
    again = Cohort(TEXT, signature)
    again.load_state_dict(cohort.state_dict())
    assert again.failed == cohort.failed
    assert again.predict(draw(signature)) == []


def test_a_drop_survives_resuming(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort, resumed = Cohort(TEXT, signature), Cohort(TEXT, signature, seed=9)
    _step(cohort, signature, draw, 0)
    _poison_gradient(cohort.networks["conv"])
    _step(cohort, signature, draw, 1)
    resumed.load_state_dict(copy.deepcopy(cohort.state_dict()))
    assert resumed.failed == cohort.failed == {"conv": "its gradient became inf"}
    for step in (2, 3):
        _step(cohort, signature, draw, step)
        _step(resumed, signature, draw, step)
    assert _same(_weights(cohort, "gru", "mlp"), _weights(resumed, "gru", "mlp"))


@pytest.mark.parametrize("bad", ["output", "infinite", "tap"])
def test_a_primary_that_fails_is_not_the_students_failure(
    bad: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    hit, spared = Cohort(TEXT, signature), Cohort(TEXT, signature)
    for step in range(5):
        _step(hit, signature, draw, step, bad=bad if step == 2 else "")
        if step != 2:
            _step(spared, signature, draw, step)
    assert not hit.failed
    assert _same(_weights(hit, *hit.names), _weights(spared, *spared.names))
    assert hit._divergence == spared._divergence


def test_a_bad_batch_spoils_the_batches_accumulated_with_it(
    signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    before = _weights(cohort, *cohort.names)
    inputs, output = draw(signature), torch.randn(3, 6, 7)
    cohort.learn(cohort.predict(inputs), output, scale=0.5)
    cohort.learn(cohort.predict(inputs), output * torch.nan, scale=0.5)
    cohort.step()
    assert _same(_weights(cohort, *cohort.names), before)
    assert not cohort.failed


def test_inputs_that_are_not_finite_do_no_harm(signatures: dict[str, Signature]) -> None:
    cohort = Cohort([MLPStudent(width=8)], signatures["features"])
    inputs = torch.randn(4, 5)
    inputs[0, 0], inputs[1, 1] = torch.nan, torch.inf
    for _ in range(3):
        cohort.learn(cohort.predict(inputs), torch.randn(4, 3))
        cohort.step()
    assert not cohort.failed


@dataclass(frozen=True)
class HugeStudent(Student):
    """Asks for more memory than there is."""

    reads = frozenset({"tokens"})

    def body(self, signature: Signature, width: int) -> nn.Module:
        """64 PiB."""
        return nn.Embedding(2**40, 2**14)


@dataclass(frozen=True)
class BrokenStudent(Student):
    """Has a bug."""

    reads = frozenset({"tokens"})

    def body(self, signature: Signature, width: int) -> nn.Module:
        """Not for lack of space."""
        raise RuntimeError("a bug")


def test_no_memory_for_a_student(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    state = torch.random.get_rng_state()
    cohort = Cohort([HugeStudent(width=4), *TEXT], signature)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert cohort.failed["huge"].startswith("out of memory when built: ")
    _step(cohort, signature, draw, 0)
    with pytest.raises(RuntimeError, match="`huge`: out of memory when built"):
        Cohort([HugeStudent(width=4), *TEXT], signature, on_failure="raise")
    assert Cohort([HugeStudent(width=4)], signature).predict(draw(signature)) == []


def test_a_bug_in_a_student_is_not_taken_for_a_lack_of_memory(signatures: dict[str, Signature]) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        Cohort([BrokenStudent(width=4), *TEXT], signatures["tokens"])


def test_activity_by_hand() -> None:
    """Two classes, logits (log 3, 0): KL(p || uniform) = log 2 - H(3/4, 1/4) = 0.1308.

    The student's logits are set by hand: (0, 0) has the same KL, so it is not active; the right ones have KL 0. After n
    steps of the first and one of the second the running averages are 0.1308 (1 - 0.9^n) 0.9 and
    0.1308 (1 - 0.9^(n+1)), whose ratio is 0.9 (1 - 0.9^n) / (1 - 0.9^(n+1)) < 0.9: active at once.
    """
    signature = Signature("features", (1,), 2, False)
    cohort = Cohort([MLPStudent(width=4)], signature, learning_rate=1e-12)
    inputs, output = torch.zeros(4, 1), torch.tensor([[3.0, 1.0]]).log().expand(4, 2)
    bias = cohort.networks["mlp"].head.linear.bias
    baseline = 0.1308
    for step in range(3):
        loss = cohort.learn(cohort.predict(inputs), output)["mlp"]
        assert loss.output.item() == pytest.approx(baseline, abs=1e-4)
        cohort.step()
        assert cohort._baseline == pytest.approx(baseline * (1 - 0.9 ** (step + 1)), abs=1e-4)
        assert cohort.active == {"mlp": False}
    with torch.no_grad():
        bias.copy_(torch.tensor([3.0, 1.0]).log())
    cohort.learn(cohort.predict(inputs), output)
    cohort.step()
    assert cohort._divergence["mlp"] == pytest.approx(0.9 * baseline * (1 - 0.9**3), abs=1e-4)
    assert cohort.active == {"mlp": True}
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 9.0]))  # far worse than uniform
    for _ in range(20):
        cohort.learn(cohort.predict(inputs), output)
        cohort.step()
    assert cohort._divergence["mlp"] > cohort._baseline
    assert cohort.active == {"mlp": True}  # never undone


def test_a_student_that_cannot_learn_stays_inactive(draw: Callable[..., Tensor]) -> None:
    """Targets without any relation to the inputs, and uniform on average."""
    signature = Signature("features", (1,), 7, False)
    cohort = Cohort([MLPStudent(width=4)], signature)
    for step in range(100):
        output = 3 * torch.randn(64, 7, generator=torch.Generator().manual_seed(step))
        cohort.learn(cohort.predict(torch.zeros(64, 1)), output)
        cohort.step()
    assert cohort.active == {"mlp": False}
