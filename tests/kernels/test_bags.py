"""Sums of embeddings by the compiled library, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import bags, native

needs_library = pytest.mark.skipif(native.library() is None, reason="no compiled library on this machine")


def case(features: int, count: int, width: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tables of different sizes, and bags of which many are empty and some are large."""
    generator = torch.Generator().manual_seed(features * 1000 + width)
    tables = [torch.randn(3 + 7 * feature, width, generator=generator) for feature in range(features)]
    lengths = (torch.rand(features, count, generator=generator) ** 4 * 12).int()
    parts = [torch.randint(len(table), (total,), generator=generator) for table, total in zip(tables, lengths.sum(1).tolist(), strict=True)]
    return tables, torch.cat(parts), lengths.flatten()


@needs_library
@pytest.mark.parametrize(("features", "count", "width"), [(1, 1, 4), (3, 40, 16), (10, 33, 32), (4, 7, 37), (2, 0, 8)])
def test_bags_hold_the_sums_of_their_rows(features: int, count: int, width: int) -> None:
    tables, values, lengths = case(features, count, width)
    found = bags.pooled(tables, values, lengths)
    exact = bags.reference.pooled([table.double() for table in tables], values, lengths)
    assert found.shape == (count, features * width)
    assert torch.equal(bags.pooled(tables, values.int(), lengths.long()), found)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)


@needs_library
def test_what_is_no_row_or_does_not_add_up_is_refused() -> None:
    tables, values, lengths = case(3, 8, 16)
    for place, wrong in ((0, len(tables[0])), (len(values) - 1, -1)):
        broken = values.clone()
        broken[place] = wrong
        with pytest.raises(ValueError, match=f"value {place} of"):
            bags.pooled(tables, broken, lengths)
    with pytest.raises(ValueError, match="left over"):
        bags.pooled(tables, torch.cat([values, values[:1]]), lengths)
    with pytest.raises(ValueError, match="missing"):
        bags.pooled(tables, values[:-1], lengths)
    with pytest.raises(ValueError, match="as many of each"):
        bags.pooled(tables, values, lengths[:-1])


def test_tables_that_it_cannot_read_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [torch.zeros(3, 8), torch.zeros(5, 8)]
    assert bags.fits(tables) == (native.library() is not None)
    assert not bags.fits([tables[0], tables[1].double()])
    assert not bags.fits([tables[0], torch.zeros(5, 4)])
    assert not bags.fits([tables[0], torch.zeros(8, 5).T])
    monkeypatch.setattr(native, "library", lambda: None)
    assert not bags.fits(tables)
