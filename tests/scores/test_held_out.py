"""The protocol: what is trained on what, what is counted, what is left alone."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from legibility.scores import (
    PROTOCOL,
    Estimator,
    Queries,
    TreeEstimator,
    error_predictability,
    held_out_imitation,
    held_out_seconds,
    held_out_twin,
    kt_code_length,
    match_temperature,
    prediction_code_length,
)
from legibility.scores.imitation import _pilot
from legibility.students import (
    GRUStudent,
    LinearStudent,
    MLPStudent,
    NGramStudent,
    Student,
    StudentNetwork,
    read_signature,
)

COUNT = 128


@pytest.fixture
def features() -> Queries:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COUNT, 6, generator=generator)
    logits = inputs @ torch.randn(6, 4, generator=generator) * 2
    labels = (logits + torch.randn(COUNT, 4, generator=generator)).argmax(-1)
    taps = {"linear.tap": inputs @ torch.randn(6, 3, generator=generator) * 5 + 7}
    return Queries(inputs, logits, labels, taps=taps)


@pytest.fixture
def tokens() -> Queries:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 5, (64, 9), generator=generator)
    earlier = functional.pad(inputs, (1, 0))[:, :-1]
    logits = 3.0 * functional.one_hot((inputs + earlier) % 5, 5).float()
    return Queries(inputs, logits, inputs, taps={"block": torch.stack([inputs, earlier], -1).float()})


def network_for(queries: Queries, taps: bool) -> StudentNetwork:
    torch.manual_seed(3)
    signature = read_signature(queries.inputs, queries.logits, dict(queries.taps) if taps else {})
    network = LinearStudent().build(signature, width=8)
    network.set_statistics({}, inputs=queries.inputs)
    return network


def test_code_length_against_a_loop_written_out(features: Queries) -> None:
    top = features.logits.argmax(-1)
    found = held_out_imitation(features, [LinearStudent()], blocks=3, passes=2, batch_size=16, width=8, seed=3)
    shuffle = torch.Generator().manual_seed(3)
    network = network_for(features, taps=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    bits = kt_code_length(torch.bincount(top[:32], minlength=4)).item()
    wrong, temperature = 0, 1.0
    for start, stop in ((32, 64), (64, 128)):
        order = torch.cat([torch.randperm(start, generator=shuffle) for _ in range(2)])
        batches = torch.split(order, 16)
        for step, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / len(batches))
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(network(features.inputs[rows]).output, top[rows]))
            optimizer.step()
        output = network(features.inputs[start:stop]).output.detach()
        bits += prediction_code_length(output / temperature, top[start:stop]).sum().item()
        temperature = max(1.0, match_temperature(output, top[start:stop], 0.0))
        wrong = int((output.argmax(-1) != top[start:stop]).sum())
    imitation = found["linear"]
    assert imitation.code_length == pytest.approx(bits, rel=1e-5)
    assert imitation.disagreement == wrong / 64
    null = kt_code_length(torch.bincount(top, minlength=4)).item()
    assert imitation.null_code_length == pytest.approx(null, abs=1e-9)
    assert imitation.saving == pytest.approx(1 - bits / null, rel=1e-5)
    assert (imitation.first_scored, imitation.positions, imitation.version) == (64, 128, PROTOCOL)


def test_kl_and_fvu_against_a_loop_written_out(features: Queries) -> None:
    found = held_out_imitation(features, [LinearStudent()], blocks=3, passes=2, batch_size=16, width=8, seed=3)
    tap, log_p = features.taps["linear.tap"], features.logits.log_softmax(-1)
    shuffle = torch.Generator().manual_seed(3)
    network = network_for(features, taps=True)
    network.set_statistics({"linear.tap": tap[:64]})
    variance = tap[:64].var(0, correction=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    batches = torch.split(torch.cat([torch.randperm(64, generator=shuffle) for _ in range(4)]), 16)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / len(batches))
        optimizer.zero_grad()
        prediction = network(features.inputs[rows])
        kl = (log_p[rows].exp() * (log_p[rows] - prediction.output.log_softmax(-1))).sum(-1).mean()
        (kl + ((prediction.taps["linear.tap"] - tap[rows]).square() / variance).mean()).backward()
        optimizer.step()
    prediction = network(features.inputs[64:])
    kl = (log_p[64:].exp() * (log_p[64:] - prediction.output.log_softmax(-1))).sum(-1).mean().item()
    marginal = log_p[:64].exp().mean(0).log()
    worst = (log_p[64:].exp() * (log_p[64:] - marginal)).sum(-1).mean().item()
    errors = (prediction.taps["linear.tap"] - tap[64:]).square().mean(0) / tap[64:].var(0, correction=0)
    imitation = found["linear"]
    assert imitation.kl == pytest.approx(kl, rel=1e-4)
    assert imitation.relative_kl == pytest.approx(kl / worst, rel=1e-4)
    assert imitation.fvu["linear.tap"] == pytest.approx(errors.mean().item(), rel=1e-4)
    predicted = imitation.predicted_taps["linear.tap"]
    torch.testing.assert_close(predicted, prediction.taps["linear.tap"].detach(), rtol=1e-4, atol=1e-4)


def test_twin_is_the_same_protocol_on_labels(features: Queries) -> None:
    assert features.labels is not None
    imitate = functools.partial(held_out_imitation, students=[LinearStudent()], blocks=3, passes=1)
    fit_twin = functools.partial(held_out_twin, students=[LinearStudent()], blocks=3, passes=1)
    twin = fit_twin(features)
    as_primary = Queries(features.inputs, functional.one_hot(features.labels, 4).float())
    assert twin["linear"] == imitate(as_primary)["linear"].saving
    found = imitate(features, twin=twin)["linear"]
    assert found.adjusted_saving == found.saving - twin["linear"]
    other = Queries(features.inputs, torch.zeros(COUNT, 4), features.labels)
    assert fit_twin(other) == twin  # the primary doesn't matter


def test_without_labels_there_is_no_twin(features: Queries) -> None:
    unlabelled = Queries(features.inputs, features.logits)
    with pytest.raises(ValueError, match="`queries.labels` must be the true labels for a twin, got None"):
        held_out_twin(unlabelled, [LinearStudent()])
    found = held_out_imitation(unlabelled, [LinearStudent()], passes=1)["linear"]
    assert math.isnan(found.adjusted_saving) and math.isfinite(found.saving)
    assert list(found.reasons) == ["adjusted_saving"] and "labels" in found.reasons["adjusted_saving"]


def test_random_state_and_modes_are_left_alone(features: Queries) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = held_out_imitation(features, [MLPStudent()], passes=1)["mlp"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Queries(features.inputs + 0, features.logits + 0, taps={"linear.tap": features.taps["linear.tap"] + 0})
        assert inside.inputs.is_inference()
        second = held_out_imitation(inside, [MLPStudent()], passes=1)["mlp"]
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)
        try:
            third = held_out_imitation(features, [MLPStudent()], passes=1)["mlp"]
        finally:
            torch.set_default_dtype(torch.float32)
        assert not torch.is_grad_enabled()
    for other in (second, third):
        assert (first.kl, first.code_length, first.fvu) == (other.kl, other.code_length, other.fvu)


def test_seed_and_order_of_queries_matter_but_not_the_company(features: Queries) -> None:
    def kl(queries: Queries, *students: LinearStudent | MLPStudent, seed: int = 0) -> float:
        return held_out_imitation(queries, students, passes=1, seed=seed)["linear"].kl

    alone = kl(features, LinearStudent())
    assert alone == kl(features, MLPStudent(), LinearStudent())
    assert alone != kl(features, LinearStudent(), seed=1)
    assert alone != kl(Queries(features.inputs.flip(0), features.logits.flip(0)), LinearStudent())


def test_names_widths_and_progress(features: Queries) -> None:
    said: list[tuple[str, float]] = []
    students = [MLPStudent(), LinearStudent(), MLPStudent(width=4)]
    found = held_out_imitation(features, students, passes=1, progress=lambda name, done: said.append((name, done)))
    assert list(found) == ["mlp", "linear", "mlp_2"]
    assert [name for name, _ in said] == sorted((name for name, _ in said), key=list(found).index)
    shares = [done for _, done in said]
    assert shares == sorted(shares) and shares[-1] == 1.0 and 10 < len(shares) <= 200
    assert found["mlp"].kl != found["mlp_2"].kl
    assert all(imitation.seconds > 0 for imitation in found.values())
    twin_said: list[float] = []
    held_out_twin(features, students, passes=1, progress=lambda _, done: twin_said.append(done))
    assert twin_said[-1] == 1.0


def test_masked_positions_have_no_influence(tokens: Queries) -> None:
    assert tokens.labels is not None
    mask = torch.ones(64, 9, dtype=torch.bool)
    mask[:, 6:] = False
    mask[1] = False  # in the first block: a query without any position
    logits, labels, tap = tokens.logits.clone(), tokens.labels.clone(), tokens.taps["block"].clone()
    students = [NGramStudent(), GRUStudent()]
    results = []
    for junk in (0.0, math.nan):
        logits[~mask], tap[~mask], labels[~mask] = junk, junk, -100
        queries = Queries(tokens.inputs, logits, labels, mask, {"block": tap})
        twin = held_out_twin(queries, students, passes=1)
        results.append(held_out_imitation(queries, students, twin=twin, passes=1))
    for name in ("ngram", "gru"):
        zeros, nans = results[0][name], results[1][name]
        assert zeros.positions == 63 * 6
        for score in ("kl", "relative_kl", "disagreement", "code_length", "adjusted_saving"):
            assert math.isfinite(getattr(nans, score))
            assert getattr(zeros, score) == getattr(nans, score)
        assert zeros.fvu == nans.fvu and math.isfinite(nans.fvu["block"])
        assert nans.reasons == {}


def test_one_answer_per_padded_sequence() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 4, (256, 7), generator=generator)
    mask = torch.arange(7) < torch.randint(1, 8, (256, 1), generator=generator)
    share = functional.one_hot(inputs, 4).float().mul(mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    logits = 8 * share
    found = held_out_imitation(Queries(inputs, logits, mask=mask), [LinearStudent()])["linear"]
    blind = held_out_imitation(Queries(inputs, logits), [LinearStudent()])["linear"]
    assert found.positions == 256
    assert found.kl < 0.05 < blind.kl  # padding is not averaged in


def test_taps_come_back_in_their_own_shape_and_units() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 6, generator=generator)
    image = (inputs @ torch.randn(6, 12, generator=generator) * 100 - 1e3).view(256, 3, 2, 2)
    noise = torch.randn(256, 5, generator=generator)
    dead = torch.full((256, 2), 0.1)
    half_dead = torch.cat([dead[:, :1], image[:, 0, 0]], 1)
    logits = inputs[:, :3] * 2
    queries = Queries(inputs, logits, taps={"image": image, "noise": noise, "dead": dead, "half.dead": half_dead})
    found = held_out_imitation(queries, [LinearStudent()], passes=8)["linear"]
    assert found.predicted_taps["image"].shape == (128, 3, 2, 2)
    assert found.fvu["image"] < 0.05
    assert found.fvu["half.dead"] < 0.05
    assert found.fvu["noise"] > 0.9
    assert math.isnan(found.fvu["dead"]) and found.reasons["fvu/dead"] == "no unit of the tap varies"
    error = (found.predicted_taps["image"] - image[128:]).square().mean()
    assert error < 0.05 * image.var()
    assert not found.predicted_taps["image"].requires_grad


def test_a_student_that_diverges_says_so(features: Queries) -> None:
    found = held_out_imitation(features, [LinearStudent(), MLPStudent()], passes=1, learning_rate=1e38)
    for imitation in found.values():
        assert math.isnan(imitation.kl) and math.isnan(imitation.saving) and math.isnan(imitation.fvu["linear.tap"])
        assert imitation.reasons["kl"] == imitation.reasons["fvu/linear.tap"] == "the student diverged"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_of_the_primary(features: Queries, dtype: torch.dtype) -> None:
    low = features.logits.to(dtype)
    queries = Queries(features.inputs.to(dtype), low, taps={"tap": features.taps["linear.tap"].to(dtype)})
    found = held_out_imitation(queries, [LinearStudent()], passes=1)["linear"]
    exact = Queries(queries.inputs.float(), low.float(), taps={"tap": queries.taps["tap"].float()})
    expected = held_out_imitation(exact, [LinearStudent()], passes=1)["linear"]
    assert found.kl == pytest.approx(expected.kl, rel=1e-4)
    assert found.code_length == pytest.approx(expected.code_length, rel=1e-4)


def test_errors(features: Queries) -> None:
    with pytest.raises(ValueError, match="`students` must hold at least one architecture"):
        held_out_imitation(features, [])
    with pytest.raises(ValueError, match="NGramStudent reads tokens, not features"):
        held_out_imitation(features, [NGramStudent()])
    with pytest.raises(ValueError, match=r"`twin` must have the families \['linear'\], got \['mlp'\]"):
        held_out_imitation(features, [LinearStudent()], twin={"mlp": 0.5})
    first_half = torch.arange(COUNT) < 64
    for mask in (first_half, ~first_half):
        with pytest.raises(ValueError, match="`mask` must leave positions both before and after query 64"):
            held_out_imitation(Queries(features.inputs, features.logits, mask=mask), [LinearStudent()])
    with pytest.raises(ValueError, match="`passes` must be at least 1, got 0"):
        held_out_imitation(features, [LinearStudent()], passes=0)
    with pytest.raises(ValueError, match="`blocks` must be from 2 to .* 128 queries plus 1, got 9"):
        held_out_imitation(features, [LinearStudent()], blocks=9)
    with pytest.raises(ValueError, match="`blocks` must be from 2"):
        held_out_imitation(features, [LinearStudent()], blocks=1)
    with pytest.raises(ValueError, match="`learning_rate` must be a positive number, got nan"):
        held_out_twin(features, [LinearStudent()], learning_rate=math.nan)
    tap = features.taps["linear.tap"].index_fill(0, torch.tensor([100]), math.inf)
    with pytest.raises(ValueError, match=r"`taps\['linear.tap'\]` must be finite where `mask` is True"):
        held_out_imitation(Queries(features.inputs, features.logits, taps={"linear.tap": tap}), [LinearStudent()])


def test_the_future_isnt_seen(features: Queries) -> None:
    """Other answers in the last block can't change what the first half cost."""
    changed = features.logits.clone()
    changed[64:] = changed[64:].flip(-1)
    costs = []
    for logits in (features.logits, changed):
        found = held_out_imitation(Queries(features.inputs, logits), [LinearStudent()], passes=1)["linear"]
        tail = _last_block(features.inputs, logits)
        costs.append(found.code_length - tail)
    assert costs[0] == pytest.approx(costs[1], abs=1e-3)


def _last_block(inputs: Tensor, logits: Tensor) -> float:
    """Bits of the last block alone, from a student trained as in the protocol up to there."""
    top, shuffle = logits.argmax(-1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = LinearStudent().build(read_signature(inputs, logits), width=32)
    network.set_statistics({}, inputs=inputs)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    temperature = 1.0
    for seen in (8, 16, 32, 64):
        batches = torch.split(torch.randperm(seen, generator=shuffle), 8)
        for step, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / len(batches))
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(network(inputs[rows]).output, top[rows]))
            optimizer.step()
        with torch.no_grad():
            output = network(inputs[seen : 2 * seen]).output
        bits = prediction_code_length(output / temperature, top[seen : 2 * seen]).sum().item()
        temperature = max(1.0, match_temperature(output, top[seen : 2 * seen], 0.0))
    return bits


@pytest.mark.slow
def test_fits_in_processes_give_the_same_numbers() -> None:
    pytest.importorskip("sklearn")
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    logits = inputs @ torch.ones(4, 3).triu() * 3
    labels = torch.where(torch.arange(200) % 4 == 0, 0, logits.argmax(1))
    queries = Queries(inputs, logits, labels, taps={"tap": inputs.tanh()})
    families: list[Student | Estimator] = [LinearStudent(), TreeEstimator(), MLPStudent(width=8)]
    said: list[tuple[str, float]] = []
    one, two = (
        held_out_imitation(
            queries,
            families,
            twin=held_out_twin(queries, families, passes=1, jobs=jobs),
            passes=1,
            jobs=jobs,
            progress=lambda name, share: said.append((name, share)),
        )
        for jobs in (1, 2)
    )
    assert list(one) == list(two) == ["linear", "tree", "mlp"]
    for name, found in one.items():
        for score in ("kl", "code_length", "adjusted_saving", "disagreement", "surplus", "fvu", "cka"):
            assert getattr(two[name], score) == pytest.approx(getattr(found, score), rel=0, abs=0, nan_ok=True)
        if found.predicted_taps:
            assert torch.equal(found.predicted_taps["tap"], two[name].predicted_taps["tap"])
    assert said[-1][1] == 1.0
    kappas = [
        [each.kappa for each in error_predictability(queries, families, passes=1, jobs=jobs).values()]
        for jobs in (None, 2)
    ]
    assert kappas[0] == kappas[1]
    with pytest.raises(ValueError, match="`jobs` must be at least 1, got 0"):
        held_out_imitation(queries, families, jobs=0)


def test_cka_of_a_layer_and_its_prediction() -> None:
    inputs = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    taps = {"linear": inputs @ torch.ones(4, 3).triu(), "noise": torch.randn(256, 3), "dead": torch.ones(256, 2)}
    found = held_out_imitation(Queries(inputs, inputs[:, :3] * 2, taps=taps), [LinearStudent()])["linear"]
    assert found.cka["linear"] > 0.95 and found.cka["noise"] < 0.5 and math.isnan(found.cka["dead"])
    scaled = taps | {"linear": taps["linear"] * torch.tensor([8.0, 1.0, 0.25])}
    again = held_out_imitation(Queries(inputs, inputs[:, :3] * 2, taps=scaled), [LinearStudent()])["linear"]
    assert again.cka["linear"] == pytest.approx(found.cka["linear"], abs=1e-6)


def test_the_estimate_counts_the_steps_of_the_fit_and_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """If six steps of a student take a second."""
    queries = Queries(inputs=torch.randn(300, 4), logits=torch.randn(300, 3), taps={"net": torch.randn(300, 5)})
    students = [LinearStudent(), MLPStudent()]
    steps: list[object] = []
    hook = register_optimizer_step_pre_hook(lambda *step: steps.append(step))
    held_out_imitation(queries, students, passes=2)
    hook.remove()
    before = torch.get_rng_state()
    assert held_out_seconds(queries, students).imitation > 0
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(_pilot, "held_out_imitation", lambda *args, **options: {"": SimpleNamespace(seconds=1.0)})
    estimate = held_out_seconds(queries, students, passes=2)
    assert estimate.imitation == pytest.approx(len(steps) / 6)
    assert estimate.twin == pytest.approx(2 * sum(2 * math.ceil(300 // 2**b / 8) for b in (1, 2, 3, 4)) / 6)


def test_the_estimate_takes_any_queries() -> None:
    tokens = torch.randint(9, (32, 6))
    mask = torch.ones(32, 6, dtype=torch.bool)
    mask[:, 3:] = False
    logits = torch.zeros(32, 6, 9).masked_fill(~mask.unsqueeze(-1), math.nan)
    queries = Queries(inputs=tokens, logits=logits, mask=mask)
    assert held_out_seconds(queries, [NGramStudent()]).imitation > 0
