import math
from collections.abc import Callable

import pytest
import torch
from known_heads import abc_head
from torch import Tensor, nn

from legibility.scores import UsedGivenEncoded, used_given_encoded

Digits = tuple[Tensor, Tensor]


def test_the_oracle() -> None:
    found = used_given_encoded(*abc_head())
    a, b, c = found.concepts
    # Planning's oracle: probes 1.000 each; erase .73/.0000/.014, interchange 1.87/.0000/.026 bits.
    # By hand without noise: erase .744/0/.0125, interchange 1.93/0/.0245.
    assert [concept.accuracy for concept in found.concepts] == [1.0, 1.0, 1.0]
    assert all(concept.encoded and concept.saving > 0.9 for concept in found.concepts)
    assert a.use == pytest.approx(0.744, abs=0.03) and a.interchange == pytest.approx(1.9, abs=0.06)
    assert b.use == pytest.approx(0, abs=1e-3) and b.interchange == pytest.approx(0, abs=1e-3)
    assert c.use == pytest.approx(0.0125, abs=3e-3) and c.interchange == pytest.approx(0.0245, abs=4e-3)
    # Erasing a random label costs more than a weakly used real concept: .358 bits in planning.
    assert all(concept.use_null == pytest.approx(0.358, abs=0.06) for concept in found.concepts)
    assert [concept.used for concept in found.concepts] == [True, False, False]
    assert [concept.witnessed for concept in found.concepts] == [True, False, False]
    assert found.share == found.witnessed_share == pytest.approx(1 / 3)
    assert found.isolation == pytest.approx(1, abs=0.01)
    assert found.score == found.share * found.isolation
    assert all(concept.permuted_saving < 0 for concept in found.concepts)


def test_entangled_concepts_are_not_isolated() -> None:
    h, concepts, rest = abc_head()
    flip = torch.rand(len(h), generator=torch.Generator().manual_seed(1)) < 0.1
    copy = torch.where(flip, 1 - concepts[:, 0], concepts[:, 0])  # correlation .8 with A, and nowhere else in h
    found = used_given_encoded(h, torch.stack([concepts[:, 0], copy, concepts[:, 1]], 1), rest, permutations=20)
    first, second, third = found.concepts
    # Erasing either removes all that is linear of the other, and nothing of B.
    assert first.isolation == pytest.approx(0.5, abs=0.02) == second.isolation
    assert third.isolation == pytest.approx(1, abs=0.01)
    assert found.isolation == pytest.approx(2 / 3, abs=0.02)


def test_what_is_not_encoded_does_not_count() -> None:
    h, concepts, rest = abc_head(noise=3)
    noise = torch.randint(3, (len(h), 1), generator=torch.Generator().manual_seed(1))
    one = torch.zeros(len(h), 1, dtype=torch.long)
    found = used_given_encoded(h, torch.cat([concepts[:, :1], noise, one], 1), rest, permutations=20)
    assert [concept.encoded for concept in found.concepts] == [True, False, False]
    assert found.share == found.isolation == found.score == 1.0
    assert math.isnan(found.concepts[1].use_null) and math.isnan(found.concepts[2].use)


def test_permuted_labels_are_neither_encoded_nor_used() -> None:
    h, concepts, rest = abc_head()
    shuffled = concepts[torch.randperm(len(h), generator=torch.Generator().manual_seed(1))]
    found = used_given_encoded(h, shuffled, rest, permutations=20)
    assert math.isnan(found.score) and found.reason == "no linear probe reads any of the concepts in this layer"
    assert not any(concept.encoded or concept.used for concept in found.concepts)


def test_constant_and_nearly_constant_models_have_no_score() -> None:
    h, concepts, rest = abc_head()
    for flat in (lambda h: torch.zeros(*h.shape[:-1], 3), lambda h: rest(h) / 100):
        found = used_given_encoded(h, concepts, flat)
        assert math.isnan(found.score) and math.isnan(found.share) and found.reason.startswith("the model is as good")


def test_temperature_changes_effects_but_not_shares() -> None:
    h, concepts, rest = abc_head()
    sharp, flat = used_given_encoded(h, concepts, rest), used_given_encoded(h, concepts, lambda h: rest(h) / 4)
    assert flat.score == sharp.score
    assert flat.concepts[0].use < sharp.concepts[0].use / 4


def test_a_rescaled_and_rotated_layer_scores_the_same() -> None:
    h, concepts, rest = abc_head(1000)
    h = h.double()
    weight = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())[0]
    change = weight * torch.logspace(-2, 2, 8, dtype=torch.float64)
    back = torch.linalg.inv(change)
    plain = used_given_encoded(h, concepts, lambda h: rest(h.float()).double(), permutations=20)
    other = used_given_encoded(h @ change, concepts, lambda h: rest((h @ back).float()).double(), permutations=20)
    assert other.score == pytest.approx(plain.score, abs=1e-6)
    for one, two in zip(plain.concepts, other.concepts, strict=True):
        assert two.use == pytest.approx(one.use, rel=1e-4, abs=1e-6)
        assert two.use_null == pytest.approx(one.use_null, rel=1e-4, abs=1e-6)
    scaled = h * torch.logspace(-3, 3, 8, dtype=torch.float64)
    units = torch.logspace(-3, 3, 8)
    third = used_given_encoded(scaled, concepts, lambda h: rest(h.float() / units).double(), permutations=20)
    assert third.concepts[0].saving == pytest.approx(plain.concepts[0].saving, abs=1e-6)


def test_trained_net_uses_its_classes_and_an_untrained_one_cannot_win(
    digits: Digits, fit: Callable[..., Tensor]
) -> None:
    inputs, labels = digits[0][:900], digits[1][:900]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, head = nn.Sequential(nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 10)
    concepts = torch.stack([labels, labels % 2], 1)
    before = body(inputs).detach()
    untrained = used_given_encoded(before, concepts, head, permutations=20)
    amplified = used_given_encoded(before, concepts, lambda h: head(h) * 6, permutations=20)
    fit(nn.Sequential(body, head), inputs, labels, epochs=30, learning_rate=3e-3)
    trained = used_given_encoded(body(inputs).detach(), concepts, head, permutations=20)
    assert math.isnan(untrained.score) and untrained.information < 0.05
    assert trained.share == trained.witnessed_share == 1.0
    # Amplified, it has the share of the trained one: why `excess_use` stands beside it.
    assert trained.excess_use > 2 * amplified.excess_use > 0


def test_masked_positions_of_sequences() -> None:
    h, concepts, rest = abc_head(1000)
    padded = torch.full((100, 13, 8), torch.nan)
    padded[:, :10] = h.view(100, 10, 8)
    labels = torch.full((100, 13, 3), -100)
    labels[:, :10] = concepts.view(100, 10, 3)
    mask = torch.zeros(100, 13, dtype=torch.bool)
    mask[:, :10] = True
    found = used_given_encoded(padded, labels, rest, mask=mask, permutations=20)
    assert found == used_given_encoded(h, concepts, rest, permutations=20)


def test_metric_equals_function_and_is_bounded() -> None:
    h, concepts, rest = abc_head(600)
    metric = UsedGivenEncoded(rest, permutations=20, limit=512)
    for batch in torch.split(torch.arange(600), 100):
        metric.update(h[batch], concepts[batch])
    expected = used_given_encoded(h[:512], concepts[:512], rest, permutations=20)
    found = metric.compute()
    assert metric.dropped == 88 and metric.findings() == expected
    assert found["score"].item() == expected.score and found["0/use"].item() == expected.concepts[0].use
    assert not metric.state_dict() and not list(metric.parameters())
    metric.reset()
    with (
        pytest.warns(UserWarning, match="was called before the ``update``"),
        pytest.raises(ValueError, match="`update` must have been given `activations`"),
    ):
        metric.compute()


def test_a_model_as_rest_is_not_part_of_the_metric() -> None:
    assert not list(UsedGivenEncoded(nn.Linear(8, 3)).parameters())


def test_errors() -> None:
    h, concepts, rest = abc_head(100)
    with pytest.raises(ValueError, match="`permutations` must be at least 20"):
        used_given_encoded(h, concepts, rest, permutations=5)
    with pytest.raises(ValueError, match=r"`concepts` must be shaped \(100, 'concepts'\)"):
        used_given_encoded(h, concepts[:50], rest)
    with pytest.raises(ValueError, match="a single logit z means"):
        used_given_encoded(h, concepts, lambda h: h[:, :1])
    with pytest.raises(ValueError, match="`rest` must give finite logits"):
        used_given_encoded(h, concepts, lambda h: rest(h) / 0)
    with pytest.raises(ValueError, match="`concepts` must be >= 0"):
        used_given_encoded(h, concepts - 1, rest)
    metric = UsedGivenEncoded(rest)
    metric.update(h, concepts)
    with pytest.raises(ValueError, match="`mask` must be given on every update or on none"):
        metric.update(h, concepts, torch.ones(100, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`activations` must have the same shape in every batch, \(8,\)"):
        metric.update(h[:, :4], concepts)
