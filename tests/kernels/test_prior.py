"""What the priors say together in one call, and what may follow what is avoided, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels import avoid, native
from kernels.bits import unpack
from kernels.prior import Followed, PrefixTable, Priors, Watched, fits, followed_logits, prefix_logits, watched_logits
from tests.kernels.marks import needs_library

# Codes of each level, where the second modality begins, and width of a row: sizes that fill vectors and words, and that leave a rest.
SIZES = [((64, 64, 64, 64), 2, 64), ((5, 3, 7), 1, 6), ((2, 300, 33), 3, 17)]


class Case:
    """Random priors and beams from a seed; small codebooks, so that much agrees."""

    def __init__(self, sizes: tuple[int, ...], content: int, depth: int, batch: int, videos: int, followers: int, seed: int = 0) -> None:
        generator = self.generator = torch.Generator().manual_seed(seed)
        levels = len(sizes)
        self.sizes = sizes
        table = torch.randn(101, depth, generator=generator)
        self.prefixes = PrefixTable(table, [torch.randn(size, depth, generator=generator) for size in sizes])
        starts = [0 if level < content else content for level in range(levels)]
        liked = torch.rand(batch, videos, generator=generator) < 0.4
        self.watched = Watched(self.sids(batch, videos), liked, torch.randn(levels, 3, generator=generator), starts)
        codes = self.sids(batch, followers)
        mass = torch.rand(batch, followers, generator=generator) ** 8 * (codes[..., 0] >= 0)  # from almost nothing up to 1
        self.followed = Followed(codes, mass, torch.randn(levels, 2, generator=generator), (1.0, 10.0))

    def sids(self, batch: int, count: int) -> Tensor:
        """Codes of the first five alone, so that they meet; -1 in a quarter of them."""
        codes = torch.stack([torch.randint(min(size, 5), (batch, count), generator=self.generator) for size in self.sizes], -1)
        return codes.masked_fill((torch.rand(batch, count, 1, generator=self.generator) < 0.25), -1)

    def beams(self, level: int, width: int) -> Tensor:
        return self.sids(len(self.watched.codes), width)[..., :level].clamp(min=0).contiguous()

    def rows(self, rows: slice) -> Priors:
        watched = self.watched._replace(codes=self.watched.codes[rows], liked=self.watched.liked[rows])
        followed = self.followed._replace(codes=self.followed.codes[rows], mass=self.followed.mass[rows])
        return Priors(self.prefixes, watched, followed)

    def reference(self, codes: Tensor) -> Tensor:
        prefixes = PrefixTable(self.prefixes.table.double(), [spread.double() for spread in self.prefixes.spread])
        watched = self.watched._replace(weight=self.watched.weight.double())
        followed = self.followed._replace(mass=self.followed.mass.double(), weight=self.followed.weight.double())
        size = self.sizes[codes.shape[2]]
        return prefix_logits(prefixes, codes) + watched_logits(watched, codes, size) + followed_logits(followed, codes, size)


@needs_library
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    ("batch", "width", "videos", "followers"), [(1, 7, 33, 128), (3, 50, 9, 5), (2, 3, 0, 40), (2, 9, 40, 0), (1, 1, 0, 0)]
)
def test_priors_in_one_call_say_what_each_says_in_float64(
    sizes: tuple[tuple[int, ...], int, int], batch: int, width: int, videos: int, followers: int
) -> None:
    case = Case(*sizes, batch, videos, followers)
    priors = case.rows(slice(None))
    for level in range(len(case.sizes)):
        codes = case.beams(level, width if level else 1)
        exact = case.reference(codes)
        assert (priors.next(codes) - exact).abs().max() < 2e-6 * max(exact.abs().max().item(), 1.0)


@needs_library
@pytest.mark.parametrize("mass", [0.0, 1e-30, 1e-8, 1e-3, 0.3, 0.41421357, 0.42, 1.0, 1e3, 1e9])
def test_a_mass_of_any_size_enters_by_its_logarithm(mass: float) -> None:
    case = Case((8,), 1, 3, 1, 0, 1)
    case.prefixes.table.zero_()
    given, weight = torch.tensor([[mass]]), torch.tensor([[1.0, 0.0]])
    priors = Priors(case.prefixes, case.watched, Followed(torch.tensor([[[6]]]), given, weight, (1.0, 10.0)))
    said = priors.next(torch.zeros(1, 1, 0, dtype=torch.int64))[0, 0]
    assert said[6].item() == pytest.approx(math.log1p(given.item()), rel=3e-7, abs=0)
    assert said.count_nonzero() == (mass > 0)


@needs_library
def test_a_request_alone_and_any_number_of_threads_have_the_same_bits() -> None:
    case = Case(*SIZES[0], 5, 40, 128)
    codes = case.beams(3, 70)
    together = case.rows(slice(None)).next(codes)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(case.rows(slice(None)).next(codes), together)
    finally:
        torch.set_num_threads(before)
    for request in range(5):
        only = slice(request, request + 1)
        assert torch.equal(case.rows(only).next(codes[only]), together[only])


@needs_library
def test_what_is_filled_up_says_nothing_and_a_code_outside_the_codebook_is_not_written() -> None:
    case = Case(*SIZES[1], 2, 6, 8)
    codes = case.beams(2, 4)
    expected = case.rows(slice(None)).next(codes)
    strange = torch.cat([codes[:, :1].expand(-1, 3, -1), torch.tensor([7, -1, 1 << 40]).view(1, 3, 1).expand(2, -1, -1)], 2)
    case.watched = case.watched._replace(
        codes=torch.cat([case.watched.codes, strange], 1), liked=torch.cat([case.watched.liked, torch.ones(2, 3, dtype=torch.bool)], 1)
    )
    case.followed = case.followed._replace(
        codes=torch.cat([case.followed.codes, strange], 1), mass=torch.cat([case.followed.mass, torch.ones(2, 3)], 1)
    )
    assert torch.equal(case.rows(slice(None)).next(codes), expected)


@needs_library
def test_weights_are_read_where_they_are_at_every_call() -> None:
    case = Case(*SIZES[0], 2, 9, 9)
    priors, codes = case.rows(slice(None)), case.beams(2, 6)
    priors.next(codes)
    for weight in (case.prefixes.table, case.prefixes.spread[2], case.watched.weight, case.followed.weight):
        weight.add_(torch.randn(weight.shape, generator=case.generator))
        exact = case.reference(codes)
        assert (priors.next(codes) - exact).abs().max() < 2e-6 * exact.abs().max()


def test_float64_and_a_machine_without_the_library_are_left_to_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(*SIZES[1], 1, 3, 3)
    assert not fits(case.prefixes, case.watched._replace(weight=case.watched.weight.double()), case.followed)
    monkeypatch.setattr(native, "library", lambda: None)
    assert not fits(case.prefixes, case.watched, case.followed)


@needs_library
@pytest.mark.parametrize("vocabulary", [2, 31, 32, 33, 64, 300])
@pytest.mark.parametrize(("level", "width", "count"), [(0, 1, 3), (1, 9, 20), (3, 40, 64), (2, 5, 0)])
def test_what_may_follow_has_the_bits_of_the_definition(vocabulary: int, level: int, width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    codes = torch.randint(2, (3, width, level), generator=generator)
    prefixes = torch.randint(2, (3, count, level + 1), generator=generator)
    prefixes[..., -1] = torch.randint(-1, vocabulary + 1, (3, count), generator=generator)  # some that are filled up, some of no code
    found = avoid.allowed(codes, prefixes, vocabulary)
    assert torch.equal(found, avoid.reference.allowed(codes, prefixes, vocabulary))
    asked = {(row, *prefix) for row, one in enumerate(prefixes.tolist()) for prefix in one}
    wanted = [[(row, *beam, code) not in asked for code in range(vocabulary)] for row, one in enumerate(codes.tolist()) for beam in one]
    assert unpack(found, vocabulary).tolist() == wanted


@needs_library
def test_codes_of_32_bits_and_weights_that_are_views_say_the_same() -> None:
    case = Case(*SIZES[0], 2, 9, 20)
    codes, prefixes = case.beams(2, 6), case.sids(2, 8)[..., :3]
    expected = case.rows(slice(None)).next(codes), avoid.allowed(codes, prefixes, 64)
    case.watched = case.watched._replace(codes=case.watched.codes.int(), liked=case.watched.liked.int())
    case.followed = case.followed._replace(codes=case.followed.codes.int(), mass=case.followed.mass.t().contiguous().t())
    spread = [each.t().contiguous().t() for each in case.prefixes.spread]
    case.prefixes = PrefixTable(case.prefixes.table, spread)
    assert torch.equal(case.rows(slice(None)).next(codes), expected[0])
    assert torch.equal(avoid.allowed(codes.int(), prefixes.int(), 64), expected[1])
