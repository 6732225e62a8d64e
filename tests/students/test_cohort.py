"""The cohort on one process: what it minimises, and how it updates, resumes and leaves others alone."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from legibility.losses import forward_kl
from legibility.students import (
    Cohort,
    ConvStudent,
    FourierStudent,
    GRUStudent,
    MLPStudent,
    NGramStudent,
    Signature,
    Student,
    TapSignature,
    TransformerStudent,
    auto_students,
)

TAP = TapSignature(1, False, (1,))
TEXT = [ConvStudent(width=8), GRUStudent(width=8), MLPStudent(width=8)]


def _batch(signature: Signature, inputs: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and taps that a primary might have for these inputs."""
    generator = torch.Generator().manual_seed(seed)
    shape = inputs.shape[:2] if signature.per_position else inputs.shape[:1]
    output = 2 * torch.randn(*shape, signature.outputs, generator=generator)
    taps = {
        name: 5.0 + 3.0 * torch.randn(*inputs.shape[: 1 + tap.per_position], tap.units, generator=generator)
        for name, tap in signature.taps.items()
    }
    return output, taps


def _train(cohort: Cohort, signature: Signature, draw: Callable[..., Tensor], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        inputs = draw(signature, 4, seed=step)
        cohort.learn(cohort.predict(inputs), *_batch(signature, inputs, step))
        cohort.step()


def _weights(cohort: Cohort) -> dict[str, Tensor]:
    return {f"{s}/{n}": t.clone() for s, net in cohort.networks.items() for n, t in net.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_building_is_deterministic_and_touches_nothing(signatures: dict[str, Signature]) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    a = Cohort(TEXT, signatures["tokens"], seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            b = Cohort(TEXT, signatures["tokens"], seed=5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert _same(_weights(a), _weights(b))
    assert not _same(_weights(a), _weights(Cohort(TEXT, signatures["tokens"], seed=6)))
    assert all(tensor.dtype == torch.float32 for tensor in _weights(a).values())


def test_building_seeds_no_accelerator(signatures: dict[str, Signature], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> None:
        raise AssertionError("torch.manual_seed reaches devices that nobody restores")

    monkeypatch.setattr("torch.cuda.manual_seed_all", fail)
    Cohort(TEXT, signatures["tokens"])


def test_training_draws_no_random_numbers(signature: Signature, draw: Callable[..., Tensor]) -> None:
    cohort = Cohort(auto_students(signature), signature, widths=[8, 8])
    state = torch.random.get_rng_state()
    _train(cohort, signature, draw, 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_student_does_not_depend_on_its_company(
    signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    alone, together = Cohort([TEXT[1]], signature), Cohort(TEXT, signature)
    _train(alone, signature, draw, 3)
    _train(together, signature, draw, 3)
    gru = {name: tensor for name, tensor in _weights(together).items() if name.startswith("gru/")}
    assert _same(_weights(alone), gru)


def test_names_are_unique(signatures: dict[str, Signature]) -> None:
    cohort = Cohort(
        [MLPStudent(depth=1), MLPStudent(depth=3), FourierStudent()], signatures["features"], widths=[4] * 3
    )
    assert cohort.names == list(cohort.networks) == ["mlp", "mlp_2", "fourier"]
    first, second = (cohort.networks[name].get_parameter("body.1.weight") for name in ("mlp", "mlp_2"))
    assert not torch.equal(first, second)


def test_reported_output_loss_is_the_forward_kl(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    _train(cohort, signature, draw, 3)
    inputs = draw(signature, 4, seed=9)
    output, taps = _batch(signature, inputs)
    output[0, 0, 0] = -torch.inf  # a class that the primary rules out
    mask = torch.rand(4, 6) < 0.6
    predictions = cohort.predict(inputs, mask)
    losses = cohort.learn(predictions, output, taps, mask)
    for name, prediction in predictions:
        expected = forward_kl(output, prediction.output.detach())[mask].mean()
        torch.testing.assert_close(losses[name].output, expected, atol=1e-5, rtol=1e-5)
        assert not losses[name].output.requires_grad


def test_reported_tap_loss_by_hand() -> None:
    """One unit, batch of 2: h = 1, 3 (mean 2, variance 1). A silent head says 2: FVU 1; one that says 2.5: 1.25."""
    signature = Signature("features", (1,), 2, False, None, {"h": TAP})
    cohort = Cohort([MLPStudent(width=4)], signature)
    bias = cohort.networks["mlp"].get_parameter("tap_heads.0.linear.bias")
    torch.nn.init.zeros_(cohort.networks["mlp"].get_parameter("tap_heads.0.linear.weight"))
    torch.nn.init.zeros_(bias)
    inputs, output, taps = torch.randn(2, 1), torch.zeros(2, 2), {"h": torch.tensor([[1.0], [3.0]])}
    assert cohort.learn(cohort.predict(inputs), output, taps)["mlp"].taps["h"].item() == pytest.approx(1.0)
    with torch.no_grad():
        bias.fill_(0.5)
    # mean of 1.5^2 and 0.5^2 = 1.25, over the variance 1
    assert cohort.learn(cohort.predict(inputs), output, taps)["mlp"].taps["h"].item() == pytest.approx(1.25)


def test_updates_equal_a_loop_written_by_hand(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    """Mean KL plus the mean of the taps' FVU, Adam at 3e-3; the first step's FVU uses that batch's variance."""
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    inputs = draw(signature, 4)
    output, taps = _batch(signature, inputs)
    tap = taps["block.0"]
    networks = copy.deepcopy(cohort.networks)
    cohort.learn(cohort.predict(inputs), output, taps)
    cohort.step()
    for name, network in networks.items():
        network.set_statistics(taps)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        said = network(inputs)
        kl = functional.kl_div(said.output.log_softmax(-1), output.softmax(-1), reduction="none").sum(-1).mean()
        variance = tap.var((0, 1), correction=0)
        loss = kl + ((tap - said.taps["block.0"]).square().mean((0, 1)) / variance).mean()
        loss.backward()
        optimizer.step()
        for key, expected in network.state_dict().items():
            torch.testing.assert_close(cohort.networks[name].state_dict()[key], expected, atol=2e-6, rtol=1e-5)


def test_learning_lowers_the_loss(signature: Signature, draw: Callable[..., Tensor]) -> None:
    cohort = Cohort(auto_students(signature), signature, widths=[16, 16], learning_rate=1e-2)
    inputs = draw(signature, 4)
    output, taps = _batch(signature, inputs)
    losses = []
    for _ in range(100):
        losses.append(cohort.learn(cohort.predict(inputs), output, taps))
        cohort.step()
    for name in cohort.names:
        assert losses[-1][name].output < 0.6 * losses[0][name].output
        assert all(losses[-1][name].taps[tap] < 0.6 for tap in taps)
        assert cohort.active[name]


def test_accumulated_batches_equal_one_large_batch(
    signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    """Also when the parts count differently many positions."""
    signature = signatures["tokens"]
    whole, parts = Cohort(TEXT, signature), Cohort(TEXT, signature)
    for step in range(4):
        inputs = draw(signature, 6, seed=step)
        output, _ = _batch(signature, inputs, step)
        mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(step)) < 0.5
        whole.learn(whole.predict(inputs, mask), output, mask=mask)
        for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
            predictions = parts.predict(inputs[part], mask[part])
            parts.learn(predictions, output[part], mask=mask[part], scale=1 / 3)
        whole.step()
        parts.step()
    a, b = _weights(whole), _weights(parts)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=0, msg=name)


def test_a_constant_scale_changes_nothing(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    plain, scaled = Cohort(TEXT, signature), Cohort(TEXT, signature)
    inputs = draw(signature)
    output, taps = _batch(signature, inputs)
    plain.learn(plain.predict(inputs), output, taps)
    scaled.learn(scaled.predict(inputs), output, taps, scale=0.25)
    plain.step()
    scaled.step()
    assert _same(_weights(plain), _weights(scaled))  # a power of two is exact


def test_the_primary_gets_no_gradient(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    inputs = draw(signature)
    output, taps = _batch(signature, inputs)
    output.requires_grad_()
    taps["block.0"].requires_grad_()
    predictions = cohort.predict(inputs)
    (output * predictions[0][1].output.detach()).sum().backward()  # type: ignore[no-untyped-call]
    before = None if output.grad is None else output.grad.clone()
    cohort.learn(predictions, output, taps)
    assert before is not None
    assert output.grad is not None
    assert torch.equal(output.grad, before)
    assert taps["block.0"].grad is None


def test_autocast_and_half_precision_primaries_change_nothing(
    signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    plain, mixed = Cohort(TEXT, signature), Cohort(TEXT, signature)
    inputs = draw(signature)
    output, taps = _batch(signature, inputs)
    output, taps = output.bfloat16(), {name: tap.bfloat16() for name, tap in taps.items()}
    plain.learn(plain.predict(inputs), output.float(), {name: tap.float() for name, tap in taps.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = mixed.predict(inputs)
        mixed.learn(predictions, output, taps)
    assert predictions[0][1].output.dtype == torch.float32
    plain.step()
    mixed.step()
    assert _same(_weights(plain), _weights(mixed))


@pytest.mark.parametrize(("batch", "positions"), [(1, 6), (1, 1), (5, 1), (2, 13)])
def test_batches_may_vary(
    batch: int, positions: int, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    students: list[Student] = [*TEXT, NGramStudent(width=4), TransformerStudent(width=8)]
    cohort = Cohort(students, signature)
    for step in range(4):
        inputs = draw(signature, *((batch, step, positions) if step % 2 else (4, step)))
        losses = cohort.learn(cohort.predict(inputs), *_batch(signature, inputs, step))
        cohort.step()
        assert all(math.isfinite(loss.output) and math.isfinite(loss.taps["block.0"]) for loss in losses.values())
    assert not cohort.failed


def test_only_batches_of_one(draw: Callable[..., Tensor]) -> None:
    """A single example has no variance; the running one grows with the batches, and nothing explodes."""
    signature = Signature("features", (5,), 3, False, None, {"h": TAP})
    cohort = Cohort([MLPStudent(width=8)], signature)
    for step in range(60):
        inputs = draw(signature, 1, seed=step)
        output, _ = _batch(signature, inputs, step)
        loss = cohort.learn(cohort.predict(inputs), output, {"h": 10 + inputs[:, :1]})["mlp"]
        cohort.step()
        assert 0 <= loss.taps["h"] < 1e3
    assert not cohort.failed
    # The tap's unit has variance 1; an average over 60 single examples knows it well enough.
    (weight,) = cohort._imitation.moments["h"].weights.tolist()
    assert 0.5 < weight < 2.0


def test_dead_units_neither_count_nor_harm(draw: Callable[..., Tensor]) -> None:
    tap = TapSignature(3, False, (3,))
    signature = Signature("features", (5,), 3, False, None, {"h": tap})
    cohort = Cohort([MLPStudent(width=8)], signature)
    for step in range(5):
        inputs = draw(signature, 4, seed=step)
        hidden = torch.stack([inputs[:, 0], torch.full((4,), 1e3), torch.zeros(4)], 1)
        loss = cohort.learn(cohort.predict(inputs), _batch(signature, inputs, step)[0], {"h": hidden})["mlp"]
        cohort.step()
        assert 0 < loss.taps["h"] < 10
    assert cohort._imitation.moments["h"].weights[1:].tolist() == [0.0, 0.0]
    nothing = {"h": torch.zeros(4, 3)}
    cohort = Cohort([MLPStudent(width=8)], signature)
    losses = cohort.learn(cohort.predict(inputs), _batch(signature, inputs)[0], nothing)
    assert losses["mlp"].taps["h"] == 0.0
    cohort.step()
    assert not cohort.failed


def test_masked_positions_do_not_matter(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    inputs = draw(signature, 4)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    cohorts = [Cohort(TEXT, signature), Cohort(TEXT, signature)]
    for cohort, padding in zip(cohorts, (0.0, torch.nan), strict=True):
        output, taps = _batch(signature, inputs)
        output[~mask] = padding
        taps["block.0"][~mask] = padding
        cohort.learn(cohort.predict(inputs, mask), output, taps, mask)
        cohort.step()
    assert not cohorts[1].failed
    assert _same(_weights(cohorts[0]), _weights(cohorts[1]))
    assert not _same(_weights(cohorts[0]), _weights(Cohort(TEXT, signature)))


def test_a_mask_of_examples(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["features"]
    inputs, mask = draw(signature, 4), torch.tensor([True, False, True, False])
    output, _ = _batch(signature, inputs)
    students = [MLPStudent(width=8)]
    half, masked = Cohort(students, signature), Cohort(students, signature)
    for cohort in (half, masked):  # the same scale of inputs in both
        cohort.predict(inputs)
    half.learn(half.predict(inputs[mask]), output[mask])
    masked.learn(masked.predict(inputs, mask), output, mask=mask)
    half.step()
    masked.step()
    a, b = _weights(half), _weights(masked)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("empty", ["mask", "batch", "nothing"])
def test_a_step_in_which_nothing_counts_changes_nothing(
    empty: str, signatures: dict[str, Signature], draw: Callable[..., Tensor]
) -> None:
    signature = signatures["tokens"]
    cohort = Cohort([ConvStudent(width=8), MLPStudent(width=8)], signature)
    _train(cohort, signature, draw, 2)
    before = copy.deepcopy(cohort.state_dict())
    inputs = draw(signature, 0 if empty == "batch" else 4)
    output, taps = _batch(signature, inputs)
    if empty != "nothing":
        mask = torch.zeros(4, 6, dtype=torch.bool) if empty == "mask" else None
        losses = cohort.learn(cohort.predict(inputs, mask), output, taps, mask)
        assert [loss.output.item() for loss in losses.values()] == [0.0, 0.0]
    cohort.step()
    _assert_equal(cohort.state_dict(), before)


def _assert_equal(a: object, b: object) -> None:
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert list(a) == list(b)
        for key in a:
            _assert_equal(a[key], b[key])
    else:
        assert a == b


def test_resume_is_exact(signature: Signature, draw: Callable[..., Tensor]) -> None:
    students = auto_students(signature)
    straight = Cohort(students, signature, widths=[8, 8])
    _train(straight, signature, draw, 3)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    untouched = copy.deepcopy(state)
    resumed = Cohort(students, signature, widths=[8, 8], seed=77)
    resumed.load_state_dict(state)
    _train(straight, signature, draw, 3, first=3)
    _train(resumed, signature, draw, 3, first=3)
    _assert_equal(resumed.state_dict(), straight.state_dict())
    _assert_equal(state, untouched)
    assert resumed.active == straight.active


def test_state_says_how_to_build_the_same_cohort(signatures: dict[str, Signature]) -> None:
    state = Cohort(TEXT, signatures["tokens"], widths=[8, 12, 16]).state_dict()
    assert Signature.from_json(state["signature"]) == signatures["tokens"]
    assert state["widths"] == {"conv": 8, "gru": 12, "mlp": 16}


def test_state_of_another_cohort(signatures: dict[str, Signature]) -> None:
    state = Cohort(TEXT, signatures["tokens"]).state_dict()
    with pytest.raises(ValueError, match="`state` must be of the same students"):
        Cohort(TEXT[:2], signatures["tokens"]).load_state_dict(state)
    with pytest.raises(ValueError, match="`state` must be of the same signature"):
        Cohort(TEXT, signatures["sequence"]).load_state_dict(state)
    with pytest.raises(ValueError, match="`state` must be of the same widths"):
        Cohort(TEXT, signatures["tokens"], widths=[8, 8, 12]).load_state_dict(state)


def test_state_of_a_run_whose_first_batch_had_other_positions(draw: Callable[..., Tensor]) -> None:
    first, second = (Signature("sequence", (n, 2), 3, True, None, {"h": TapSignature(4, True, (n, 4))}) for n in (6, 9))
    cohort = Cohort(TEXT, first)
    _train(cohort, first, draw, 2)
    resumed = Cohort(TEXT, second)
    resumed.load_state_dict(cohort.state_dict())
    assert _same(_weights(cohort), _weights(resumed))


def test_values_are_learned_in_their_own_units(draw: Callable[..., Tensor]) -> None:
    """Outputs of very different sizes, one of them constant; a fresh student knows the mean: its loss is 1."""
    signature = Signature("features", (5,), 3, False)
    cohort = Cohort([MLPStudent(width=16)], signature, kind="values", learning_rate=1e-2)
    losses = []
    for step in range(80):
        inputs = draw(signature, 32, seed=step)
        output = torch.stack([1e4 * inputs[:, 0], 1e-3 * inputs[:, 1] + 5.0, torch.full((32,), 7.0)], 1)
        losses.append(cohort.learn(cohort.predict(inputs), output)["mlp"].output.item())
        cohort.step()
    assert losses[0] == pytest.approx(1.0, abs=1e-3)
    assert losses[-1] < 0.1
    assert cohort.active["mlp"]
    predicted = cohort.predict(inputs)[0][1].output.detach()
    errors = (predicted - output).square().mean(0) / output.var(0)
    assert (errors[:2] < 0.2).all()  # the small one as well as the large one
    assert (predicted[:, 2] - 7.0).abs().max() < 1.0


def test_a_single_logit_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="`kind` 'distribution' needs at least 2 outputs.*kind='values'"):
        Cohort([MLPStudent(width=4)], Signature("features", (5,), 1, False))


def test_bad_arguments(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    for settings, message in (
        ({"widths": [8]}, "`widths` must have one entry per student, 3; got 1"),
        ({"kind": "logits"}, "`kind` must be 'distribution' or 'values', got 'logits'"),
        ({"on_failure": "ignore"}, "`on_failure` must be 'drop' or 'raise', got 'ignore'"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0 and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Cohort(TEXT, signature, **settings)
    cohort = Cohort(TEXT, signature)
    inputs = draw(signature)
    output, taps = _batch(signature, inputs)
    predictions = cohort.predict(inputs)
    for arguments, message in (
        ((predictions, output[..., :2]), r"`output` must be \(batch, positions, 7\).*got \(3, 6, 2\)"),
        ((predictions, output[0]), "`output` must be"),
        ((predictions, output[:2]), r"`predictions` must be of the batch whose `output` is \(2, 6, 7\)"),
        ((predictions, output, {"other": output}), "`taps` must be among block.0, got 'other'"),
        ((predictions, output, {"block.0": output}), r"tap `block.0` must have 5 units.*got \(3, 6, 7\)"),
        ((predictions, output, taps, torch.ones(3, 6)), "`mask` must be bool"),
        ((predictions, output, taps, torch.ones(3, 5).bool()), r"`mask` must be \(3, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cohort.learn(*arguments)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`scale` must be above 0 and finite"):
            cohort.learn(predictions, output, taps, scale=scale)


def test_learning_waits_for_the_step(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    inputs = draw(signature)
    cohort.learn(cohort.predict(inputs), *_batch(signature, inputs))
    cohort.start_synchronising()
    cohort.start_synchronising()  # once is enough, twice does no harm
    with pytest.raises(RuntimeError, match="`learn` was called after `start_synchronising`: call `step` first"):
        cohort.learn(cohort.predict(inputs), *_batch(signature, inputs))
    cohort.step()
    cohort.learn(cohort.predict(inputs), *_batch(signature, inputs))


def test_can_be_copied_between_steps(signatures: dict[str, Signature], draw: Callable[..., Tensor]) -> None:
    signature = signatures["tokens"]
    cohort = Cohort(TEXT, signature)
    _train(cohort, signature, draw, 2)
    twin = copy.deepcopy(cohort)
    _train(cohort, signature, draw, 2, first=2)
    _train(twin, signature, draw, 2, first=2)
    _assert_equal(twin.state_dict(), cohort.state_dict())
