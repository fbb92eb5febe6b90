"""LazyAR: the trunk reads no code, the search finds what scoring says, and a tiny set is learned by heart."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.grm import Grm, Query, collate
from model.grm.decoder import Decoder
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, small_config
from tests.model.grm.test_grm_decoder import decoder_of, random_context

EVERY_SID = list(itertools.product(*(range(size) for size in CODES)))


def lazy_decoder(layers: int = 3, trunk: int = 2) -> Decoder:
    return decoder_of(small_config(layers=layers, lazy_trunk=trunk))


def test_one_position_at_a_time_gives_what_all_at_once_give() -> None:
    decoder = lazy_decoder()
    context, targets = random_context(decoder.config, 2, 5), torch.tensor([[1, 2, 3], [5, 0, 1]])
    together, _ = decoder(decoder.embed_all(targets), context)
    past = None
    for level in range(3):
        hidden, past = decoder(decoder.embed(targets[:, None, :level], level), context, past)
        torch.testing.assert_close(hidden[:, :, 0], together[:, :, level], rtol=1e-10, atol=1e-10)


def test_the_trunk_knows_no_code_and_what_follows_it_knows_those_before() -> None:
    decoder = lazy_decoder()
    context = random_context(decoder.config, 1, 4)
    first, kept = decoder(decoder.embed_all(torch.tensor([[1, 2, 3]])), context)
    other, kept_other = decoder(decoder.embed_all(torch.tensor([[1, 4, 0]])), context)
    assert torch.equal(kept[0][0], kept_other[0][0])
    assert torch.equal(first[:, :, :2], other[:, :, :2])
    assert not torch.equal(first[:, :, 2], other[:, :, 2])


def test_the_fused_state_is_that_of_its_formula() -> None:
    decoder = lazy_decoder()
    fuse = decoder.fuse
    assert fuse is not None
    trunk, code = torch.randn(32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    expected = fuse.out.weight[:, :32] @ (trunk * (fuse.gate.weight @ code)) + fuse.out.weight[:, 32:] @ code
    torch.testing.assert_close(fuse(trunk, code), expected)


@pytest.mark.usefixtures("engine")
def test_wide_enough_beams_find_what_trying_every_sid_finds(world: SmallWorld) -> None:
    model = Grm(small_config(layers=3, lazy_trunk=2))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    person = Query(3, START_MS, Context([HistoryEntry(n, START_MS - n * 5000, 4000) for n in range(3)]))
    found = model.beam(collate([person], world.vocabulary, model.config), [6, 30, 10])
    every = collate([person] * len(EVERY_SID), world.vocabulary, model.config).with_targets(EVERY_SID)
    score, order = model.log_prob(every).sum(1).detach().topk(10)
    assert found.sids[0].tolist() == [list(EVERY_SID[index]) for index in order]
    torch.testing.assert_close(found.log_prob[0], score, rtol=1e-5, atol=1e-5)


def test_a_few_targets_are_learned_by_heart_and_the_trunk_learns_too(world: SmallWorld) -> None:
    model = Grm(small_config(lazy_trunk=1))
    rows = [Query(user, START_MS, Context([HistoryEntry(user * 2, START_MS - 100, 9000)])) for user in range(8)]
    batch = collate(rows, world.vocabulary, model.config).with_targets([world.sids[user * 7].tolist() for user in range(8)])
    optimizer = torch.optim.AdamW([parameter for _, parameter in model.dense_parameters()], lr=3e-3)
    first = model(batch).auxiliary
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch, torch.ones(8)).backward()
        optimizer.step()
    last = model(batch)
    assert -last.log_prob.mean() < 0.02
    assert first is not None
    assert last.auxiliary is not None
    assert last.auxiliary.mean() > first.mean() / 2


def test_a_trunk_without_layers_behind_it_is_refused() -> None:
    with pytest.raises(ValueError, match="lazy_trunk is 2"):
        small_config(layers=2, lazy_trunk=2)
