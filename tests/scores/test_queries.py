import math

import pytest
import torch

from legibility.scores import Queries


def test_counted_positions() -> None:
    logits = torch.zeros(32, 5, 3)
    mask = torch.ones(32, 5, dtype=torch.bool)
    mask[0, 2:] = False
    assert Queries(torch.zeros(32, 5, dtype=torch.long), logits).counted.sum() == 160
    queries = Queries(torch.zeros(32, 5, dtype=torch.long), logits, mask=mask)
    assert queries.counted.sum() == 157
    assert queries.positions_to_read is mask


def test_padding_mask_of_one_answer_per_sequence() -> None:
    mask = torch.ones(32, 5, dtype=torch.bool)
    mask[3] = False
    queries = Queries(torch.zeros(32, 5, dtype=torch.long), torch.zeros(32, 3), mask=mask)
    assert queries.counted.shape == (32,) and queries.counted.sum() == 31
    assert queries.positions_to_read is mask
    by_query = Queries(torch.zeros(32, 5, dtype=torch.long), torch.zeros(32, 3), mask=mask[:, 0])
    assert by_query.counted.sum() == 31 and by_query.positions_to_read is None


def test_what_is_masked_may_be_anything() -> None:
    logits, labels, mask = torch.zeros(32, 5, 3), torch.zeros(32, 5, dtype=torch.long), torch.ones(32, 5).bool()
    logits[0, 0], labels[0, 0], mask[0, 0] = math.nan, -100, False
    assert len(Queries(labels, logits, labels, mask)) == 32
    with pytest.raises(ValueError, match="`logits` must be finite where `mask` is True"):
        Queries(labels, logits)
    with pytest.raises(ValueError, match="`labels` must be in 0..2, got -100..0: set `mask`"):
        Queries(labels, torch.zeros(32, 5, 3), labels)


def test_errors() -> None:
    inputs, logits = torch.zeros(40, 5), torch.zeros(40, 3)
    with pytest.raises(ValueError, match="`logits` must answer at least 32 queries, got 31"):
        Queries(inputs[:31], logits[:31])
    with pytest.raises(TypeError, match="`logits` must be a floating point tensor, got torch.int64"):
        Queries(inputs, logits.long())
    with pytest.raises(ValueError, match=r"`logits` must be \(N, K\) or \(N, T, K\), got \(40,\)"):
        Queries(inputs, logits[:, 0])
    with pytest.raises(ValueError, match=r"`inputs` must hold as many queries as `logits`, 40, got \(39, 5\)"):
        Queries(inputs[1:], logits)
    with pytest.raises(ValueError, match=r"`labels` must have the shape .*\(40,\), got \(40, 1\)"):
        Queries(inputs, logits, torch.zeros(40, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`mask` must be bool \(40,\) or \(40, 5\), got torch.bool \(40, 3\)"):
        Queries(inputs, logits, mask=torch.ones(40, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`mask` must leave at least one position"):
        Queries(inputs, logits, mask=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"`taps\['a.b'\]` must be a floating point tensor, got torch.int64"):
        Queries(inputs, logits, taps={"a.b": torch.zeros(40, 2, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"`taps\['a.b'\]` must be \(40, ..., units\), got \(39, 2\)"):
        Queries(inputs, logits, taps={"a.b": torch.zeros(39, 2)})
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="`logits` must be finite"):
            Queries(inputs, logits.index_fill(0, torch.tensor([7]), bad))
