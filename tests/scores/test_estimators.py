"""Families without gradients, held to the same protocol as the networks."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from legibility.scores import (
    Estimator,
    FamilyImitation,
    ForestEstimator,
    HeldOutImitation,
    KernelEstimator,
    NearestEstimator,
    Queries,
    TreeEstimator,
    default_estimators,
    held_out_imitation,
    held_out_twin,
    imitation_saving,
    kt_code_length,
    match_temperature,
    prediction_code_length,
    regression_queries,
    transfer_ratio,
)
from legibility.scores.imitation import _refitted
from legibility.scores.imitation._estimators import MOST_ROWS
from legibility.scores.imitation._rows import windows
from legibility.students import LinearStudent

pytest.importorskip("sklearn")
Digits = tuple[Tensor, Tensor]
FAST: list[Estimator] = [ForestEstimator(20), NearestEstimator(), KernelEstimator(), TreeEstimator()]


def features(count: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs @ torch.randn(6, 4, generator=generator)).tanh() * 5


@pytest.mark.parametrize("most", [MOST_ROWS, 20])
def test_code_length_against_a_loop_written_out(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree's: fitted anew before each block, to no more than the first so many, calibrated on the block before."""
    monkeypatch.setattr(_refitted, "MOST_ROWS", most)
    tree = pytest.importorskip("sklearn.tree")
    inputs, logits = features(128)
    rows = ((inputs.double() - inputs.double().mean(0)) / inputs.double().std(0, correction=0)).numpy()
    top = logits.argmax(-1)
    edges = [8, 16, 32, 64, 128]

    def said(seen: int, start: int, stop: int) -> Tensor:
        fitted = tree.DecisionTreeClassifier(max_leaf_nodes=32, random_state=0).fit(
            rows[: min(seen, most)], top[: min(seen, most)].numpy()
        )
        found = torch.full((stop - start, 4), -12.0, dtype=torch.float64)
        for row, (leaf, shares) in enumerate(
            zip(fitted.apply(rows[start:stop]), fitted.predict_proba(rows[start:stop]), strict=True)
        ):
            size = fitted.tree_.n_node_samples[leaf]
            for column, label in enumerate(fitted.classes_):
                found[row, label] = math.log((size * shares[column] + 0.5) / (size + 2))
        return found

    bits = kt_code_length(torch.bincount(top[:8], minlength=4)).item()
    temperature = match_temperature(said(4, 4, 8), top[4:8], 0.0)
    for start, stop in itertools.pairwise(edges):
        answers = said(start, start, stop)
        temperature = min(max(temperature, 0.05), 100.0)
        bits += prediction_code_length(answers / temperature, top[start:stop]).sum().item()
        temperature = match_temperature(answers, top[start:stop], 0.0)
    said_so: list[float] = []
    queries = Queries(inputs, logits)
    found = held_out_imitation(queries, [TreeEstimator()], progress=lambda _, share: said_so.append(share))["tree"]
    # Fits: one for the first temperature, four blocks, one of shares; those to the same rows are one.
    assert len(said_so) == (5 if most == 20 else 6) and said_so[-1] == 1.0
    assert found.code_length == pytest.approx(bits, abs=1e-6)
    assert found.disagreement == (said(64, 64, 128).argmax(-1) != top[64:]).double().mean().item()
    assert found.null_code_length == pytest.approx(kt_code_length(torch.bincount(top, minlength=4)).item())


def test_true_labels_cost_about_700_bits(digits: Digits) -> None:
    # Reference 700 +- 60 of 5969.5 bits, by a logistic regression; a forest comes close, a small tree doesn't.
    inputs, labels = digits
    queries = Queries(inputs, functional.one_hot(labels, 10).float() * 9)
    found = held_out_imitation(queries, [ForestEstimator(), TreeEstimator()], blocks=7)
    assert found["forest"].code_length == pytest.approx(760, abs=100)
    assert 2000 < found["tree"].code_length < 3500
    assert found["forest"].surplus < found["forest"].code_length - 0.09 * 1797  # .1 bit each, where it is above that
    assert found["forest"].kl < 0.5


def test_permuted_labels_are_never_compressed(digits: Digits) -> None:
    inputs, labels = digits
    noise = labels[torch.randperm(1797, generator=torch.Generator().manual_seed(1))]
    found = held_out_imitation(Queries(inputs, functional.one_hot(noise, 10) * 5.0), FAST)
    for family in found.values():
        assert 5969.5 < family.code_length < 6150, family.family  # uniform, and what a code loses at most
        assert family.saving < 0.02  # the 40 bits by which KT is worse than uniform
        assert family.disagreement > 0.85 and family.relative_kl > 0.95


def test_a_flattened_model_has_the_same_hard_label_scores() -> None:
    inputs, logits = features()
    sharp, flat = (held_out_imitation(Queries(inputs, answers), FAST) for answers in (logits, logits / 4))
    for name, family in sharp.items():
        for score in ("saving", "disagreement", "code_length", "surplus"):
            assert getattr(family, score) == getattr(flat[name], score)
        assert flat[name].kl < family.kl


@pytest.mark.parametrize("kind", ["one class", "no input"])
def test_a_constant_model_scores_nan(kind: str) -> None:
    inputs, logits = features()
    answers = {"one class": logits + torch.eye(4)[3] * 1e3, "no input": logits[:1].expand(256, 4)}[kind]
    found = held_out_imitation(Queries(inputs, answers), FAST)
    assert all(math.isnan(family.saving) and math.isnan(family.surplus) for family in found.values())
    assert imitation_saving(found).reason == (
        "0 families have a value, 3 are needed: the primary is constant: its top-1 never changes"
    )


def test_twin_is_the_same_protocol_on_labels() -> None:
    inputs, logits = features()
    labels = (logits + torch.randn(256, 4, generator=torch.Generator().manual_seed(1)) * 3).argmax(-1)
    families: list[Estimator | LinearStudent] = [*FAST, LinearStudent()]
    queries = Queries(inputs, logits, labels)
    twin = held_out_twin(queries, families, passes=1)
    assert list(twin) == ["forest", "nearest", "kernel", "tree", "linear"]
    on_labels = held_out_imitation(Queries(inputs, functional.one_hot(labels, 4).float() * 9), families, passes=1)
    found = held_out_imitation(queries, families, twin=twin, passes=1)
    for name, family in on_labels.items():
        assert family.saving == pytest.approx(twin[name], abs=1e-12)
        assert found[name].adjusted_saving == pytest.approx(found[name].saving - twin[name], abs=1e-12)
    summary = imitation_saving(found)
    gains = sorted(family.adjusted_saving for family in found.values())
    assert (summary.median, summary.best, summary.adjusted) == (gains[2], gains[4], True)
    assert summary.median > 0  # without the labels' noise it is easier


def test_company_order_jobs_and_random_state_dont_matter() -> None:
    inputs, logits = features(128)
    queries = Queries(inputs, logits)
    state = torch.random.get_rng_state()
    said: list[tuple[str, float]] = []
    alone = held_out_imitation(queries, [TreeEstimator()], progress=lambda n, s: said.append((n, s)))["tree"]
    assert said[-1] == ("tree", 1.0) and len(said) == 6  # one fit for the first temperature, four blocks, one of shares
    together = held_out_imitation(queries, [*FAST, LinearStudent()], passes=1, jobs=2)
    assert (alone.code_length, alone.kl) == (together["tree"].code_length, together["tree"].kl)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [*together] == ["forest", "nearest", "kernel", "tree", "linear"]
    two = held_out_imitation(queries, [TreeEstimator(4), TreeEstimator(32)])
    assert [*two] == ["tree", "tree_2"] and two["tree"].saving != two["tree_2"].saving


def test_masked_queries_have_no_influence() -> None:
    inputs, logits = features(128)
    mask = torch.arange(128) % 3 > 0
    other = logits.clone()
    other[~mask] = -7.0
    found = [
        held_out_imitation(Queries(inputs, each, mask=mask), [TreeEstimator()])["tree"] for each in (logits, other)
    ]
    assert (found[0].code_length, found[0].kl) == (found[1].code_length, found[1].kl)
    assert found[0].positions == int(mask.sum())


@pytest.mark.parametrize(
    ("inputs", "answers", "reason"),
    [
        ("tokens", (64, 5), "estimators read tokens only where each has an answer of its own"),
        ("tokens", (64, 9, 300), "estimators choose among at most 256 answers to a token, not 300"),
        ("numbers", (64, 9, 5), "estimators give one answer per row, not one per position"),
    ],
)
def test_what_estimators_dont_read_is_skipped_with_a_reason(inputs: str, answers: tuple[int, ...], reason: str) -> None:
    draw = torch.Generator().manual_seed(0)
    given = torch.randint(0, 5, (64, 9), generator=draw) if inputs == "tokens" else torch.randn(64, 9, 2)
    queries = Queries(given, torch.randn(answers, generator=draw))
    family = held_out_imitation(queries, [TreeEstimator()], twin={"tree": 0.5})["tree"]
    assert math.isnan(family.saving) and math.isnan(family.kl)
    assert family.reasons["saving"] == family.reasons["kl"] == reason


def bigrams(answers: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences of a language in which two tokens decide the next: ids, the logits of what comes next, what came."""
    draw = torch.Generator().manual_seed(0)
    rule = torch.randn(answers, answers, answers, generator=draw) * 2
    said = torch.randint(0, answers, (96, 2), generator=draw)
    for _ in range(23):
        following = rule[said[:, -2], said[:, -1]].softmax(-1).multinomial(1, generator=draw)
        said = torch.cat([said, following], 1)
    return said[:, 1:-1], rule[said[:, :-2], said[:, 1:-1]], said[:, 2:]


def test_of_tokens_the_last_few_are_read() -> None:
    ids, logits, _ = bigrams()
    found = held_out_imitation(Queries(ids, logits), FAST)
    noise = logits.flatten(0, 1)[torch.randperm(logits.shape[:2].numel(), generator=torch.Generator().manual_seed(1))]
    shuffled = held_out_imitation(Queries(ids, noise.view_as(logits)), FAST)
    for name, family in found.items():
        # 36 pairs decide everything, but for the first of 23 positions, whose predecessor isn't shown.
        assert family.saving > 0.75 and family.disagreement < 1 / 23 and family.relative_kl < 0.15, name
        assert shuffled[name].saving < 0.02 and shuffled[name].relative_kl > 0.95, name
    flat = held_out_imitation(Queries(ids, logits / 4), FAST)
    assert all(family.saving == flat[name].saving for name, family in found.items())


def test_rows_of_tokens() -> None:
    ids = torch.randint(0, 3, (2, 12), generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(windows(ids).toarray()).view(2, 12, 8, 4)  # what stands before the first, and three tokens
    squares = rows[0, 11].square().sum(-1)
    torch.testing.assert_close(squares / squares[0], 0.5 ** torch.arange(8, dtype=torch.float64))
    assert rows[0, 11].argmax(-1).tolist() == (ids[0, 4:].flip(0) + 1).tolist()
    assert rows[1, 2].argmax(-1).tolist() == [*(ids[1, :3].flip(0) + 1).tolist(), 0, 0, 0, 0, 0]
    assert rows.flatten(2).var((0, 1), correction=0).mean().item() == pytest.approx(1.0)
    # Who agrees for longer is nearer, whatever stands before.
    distance = (rows.flatten(0, 1).flatten(1)[:, None] - rows.flatten(0, 1).flatten(1)).square().sum(-1)
    codes = rows.flatten(0, 1).argmax(-1)
    common = (codes[:, None] == codes).long().cumprod(-1).sum(-1)
    for one in range(24):
        order = distance[one].argsort()
        assert common[one][order].tolist() == sorted(common[one].tolist(), reverse=True)
    # Nothing after a position is seen at it; padding is what stands before the first, whatever its id.
    later = torch.cat([ids[:, :6], (ids[:, 6:] + 1) % 3], 1)
    padded = torch.cat([torch.full((2, 3), -7), ids], 1)
    assert torch.equal(
        torch.from_numpy(windows(later).toarray()).view(2, 12, 32)[:, :6] > 0, rows.flatten(2)[:, :6] > 0
    )
    assert torch.equal(torch.from_numpy(windows(padded).toarray()).view(2, 15, 32)[:, 3:] > 0, rows.flatten(2) > 0)


def test_masked_positions_of_tokens_are_neither_learnt_nor_scored() -> None:
    ids, logits, labels = bigrams()
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    other = logits.where(mask.unsqueeze(-1), 7.0 * torch.eye(6)[0])
    families: list[Estimator] = [TreeEstimator(), NearestEstimator()]
    one, two = (held_out_imitation(Queries(ids, each, mask=mask), families) for each in (logits, other))
    for name, family in one.items():
        assert (family.code_length, family.kl) == (two[name].code_length, two[name].kl)
        assert family.positions == int(mask.sum())
    unknown = labels.where(mask, -100)
    twins = [held_out_twin(Queries(ids, each, unknown, mask), families) for each in (logits, other)]
    assert twins[0] == twins[1] and twins[0]["nearest"] > 0.2


def test_few_classes_in_the_first_blocks() -> None:
    """A family that saw one class, or hasn't seen all, still codes the rest."""
    inputs, _ = features(256)
    top = torch.zeros(256, dtype=torch.long)
    top[100:] = torch.arange(156) % 3
    found = held_out_imitation(Queries(inputs, functional.one_hot(top, 4).float() * 9), FAST)
    for family in found.values():
        assert math.isfinite(family.code_length) and family.code_length < 256 * math.log2(4 / 1e-3)


def test_a_wide_prefix_is_cut_and_images_are_flattened() -> None:
    images = torch.rand(96, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = 0.5  # no variance
    logits = torch.stack([images.flatten(1).sum(1) - 8, -images.flatten(1).sum(1) + 8], 1)
    found = held_out_imitation(Queries(images, logits), FAST)
    assert all(math.isfinite(family.saving) for family in found.values())


def test_regression_by_bins() -> None:
    inputs, _ = features()
    outputs = torch.stack([inputs[:, 0] * 3 + 1, inputs[:, 0] * 6], 1)
    noisy = outputs + torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * 4
    queries = regression_queries(inputs, outputs, noisy)
    assert torch.bincount(queries.logits.argmax(-1)).tolist() == [32] * 8
    twin = held_out_twin(queries, [TreeEstimator()])
    found = held_out_imitation(queries, [TreeEstimator()], twin=twin)["tree"]
    assert found.saving > 0.5 and found.adjusted_saving > 0.2
    scaled = held_out_imitation(regression_queries(inputs, outputs * 100 - 7), [TreeEstimator()])["tree"]
    assert scaled.code_length == found.code_length
    still = held_out_imitation(regression_queries(inputs, torch.zeros(256, 1)), [TreeEstimator()])["tree"]
    assert math.isnan(still.saving) and "constant" in still.reasons["saving"]
    with pytest.raises(ValueError, match=r"`outputs` must be \(N,\) or \(N, outputs\), floating point and finite"):
        regression_queries(inputs, torch.full((256,), math.inf))
    with pytest.raises(ValueError, match=r"`targets` must have the shape of `outputs` \(256, 2\), got \(256,\)"):
        regression_queries(inputs, outputs, inputs[:, 0])
    with pytest.raises(ValueError, match="`bins` must be at least 2, got 1"):
        regression_queries(inputs, outputs, bins=1)


def family(name: str, saving: float, adjusted: float = math.nan) -> FamilyImitation:
    reasons = {} if math.isfinite(saving) else {"saving": "the student diverged"}
    return FamilyImitation(name, 32, 64, saving=saving, adjusted_saving=adjusted, reasons=reasons)


def test_saving_over_families_by_hand() -> None:
    found = imitation_saving(
        {name: family(name, s, s - 0.5) for name, s in zip("abcd", (0.1, 0.4, 0.8, 0.6), strict=True)}
    )
    assert (found.median, found.plain_best, found.families) == (0.0, 0.8, 4) and found.best == pytest.approx(0.3)
    plain = imitation_saving({name: family(name, 0.3) for name in "abc"})
    assert (plain.median, plain.adjusted) == (0.3, False)
    few = imitation_saving({"a": family("a", 0.3), "b": family("b", 0.3), "c": family("c", math.nan)})
    assert math.isnan(few.median) and few.reason == "2 families have a value, 3 are needed: the student diverged"


def test_transfer_ratio_by_hand() -> None:
    held_out = {"a": family("a", 0.5, 0.1), "b": family("b", 0.5, 0.3)}
    assert transfer_ratio(held_out, {"m": family("m", 0.9, 0.4)}) == pytest.approx(0.5)
    assert math.isnan(transfer_ratio(held_out, {"m": family("m", 0.9, -0.1)}))
    assert math.isnan(transfer_ratio({"a": family("a", 0.5)}, {"m": family("m", 0.9, 0.4)}))


def test_metric_names_medians_and_maxima() -> None:
    inputs, logits = features(96)
    metric = HeldOutImitation([TreeEstimator(), NearestEstimator()])
    metric.update(inputs, logits)
    values = metric.compute()
    found = held_out_imitation(Queries(inputs, logits), [TreeEstimator(), NearestEstimator()])
    assert values["max/saving"].item() == max(each.saving for each in found.values())
    assert values["tree/surplus"].item() == found["tree"].surplus


def test_default_families_and_settings() -> None:
    assert len(default_estimators()) == 4
    with pytest.raises(ValueError, match="`trees` of ForestEstimator must be at least 1, got 0"):
        ForestEstimator(0)


def test_an_untrained_net_doesnt_win() -> None:
    inputs, _ = features()
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    found = held_out_imitation(Queries(inputs, net(inputs).detach()), FAST)
    assert all(math.isnan(each.saving) for each in found.values())
