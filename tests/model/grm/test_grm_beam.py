"""Beam search: exact where it can be, ordered, shared, and constrained."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from kernels.trie import Prefixes, Trie
from kernels.trie.layered import Layered
from model.grm import Grm, Query, beam, collate
from model.grm.decoder import Context as Encoded
from model.grm.decoder import Decoder
from model.grm.graph import BeamGraph
from model.grm.inputs import Vocabulary
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, small_config, small_world

pytestmark = pytest.mark.usefixtures("engine")

EVERY_SID = list(itertools.product(*(range(size) for size in CODES)))


def people(count: int) -> list[Query]:
    return [
        Query(user, START_MS, Context([HistoryEntry(user * 3 + n, START_MS - n * 5000, 4000) for n in range(user)]))
        for user in range(count)
    ]


def disturbed(model: Grm) -> Grm:
    """Weights that differ from person to person and from code to code."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.tables()["prefix"].add_(torch.randn_like(model.tables()["prefix"]))
    return model


@pytest.fixture
def trained() -> Grm:
    return disturbed(Grm(small_config()))


def assert_margin(exact: torch.Tensor, chosen: torch.Tensor, score: torch.Tensor) -> None:
    """Of all candidates with scores float64[N], the right ones were chosen, up to near ties, and scored right."""
    eps = 1e-4
    threshold = exact.topk(len(chosen)).values[-1]
    assert len(set(chosen.tolist())) == len(chosen)
    assert set((exact > threshold + eps).nonzero().flatten().tolist()) <= set(chosen.tolist())
    assert (exact[chosen] >= threshold - eps).all()
    torch.testing.assert_close(score.double(), exact[chosen], rtol=0, atol=eps)


def step(decoder: Decoder, context: Encoded, prefix: tuple[int, ...], level: int) -> torch.Tensor:
    """Log-probabilities of the code after a prefix, all positions computed anew."""
    with torch.no_grad():
        codes = torch.tensor([[list(prefix)]], dtype=torch.int64)
        inputs = torch.cat([decoder.embed(codes[..., :position], position) for position in range(level + 1)], 2)
        return torch.log_softmax(decoder.logits(decoder(inputs, context)[0][0, 0, -1], level), -1)


def poisoned(values: torch.Tensor) -> torch.Tensor:
    return values.fill_(torch.nan if values.is_floating_point() else 7)


def exhaustive(model: Grm, person: Query) -> torch.Tensor:
    """Log-probability of every SID."""
    batch = collate([person] * len(EVERY_SID), small_world().vocabulary, model.config).with_targets(EVERY_SID)
    return model.log_prob(batch).sum(1).detach()


def test_wide_enough_beams_find_what_trying_every_sid_finds(trained: Grm, world: SmallWorld) -> None:
    asked = people(3)
    found = trained.beam(collate(asked, world.vocabulary, trained.config), [6, 30, 20])
    for row, person in enumerate(asked):
        score, order = exhaustive(trained, person).topk(20)
        assert found.sids[row].tolist() == [list(EVERY_SID[index]) for index in order]
        torch.testing.assert_close(found.log_prob[row], score, rtol=1e-5, atol=1e-5)


def test_a_narrow_beam_scores_its_sids_as_the_model_does(trained: Grm, world: SmallWorld) -> None:
    asked = people(2)
    found = trained.beam(collate(asked, world.vocabulary, trained.config), [2, 3, 5])
    assert found.sids.shape == (2, 5, 3)
    assert (found.log_prob.diff(dim=1) <= 0).all()
    for row, person in enumerate(asked):
        batch = collate([person] * 5, world.vocabulary, trained.config).with_targets(found.sids[row].tolist())
        torch.testing.assert_close(trained.log_prob(batch).sum(1).detach(), found.log_prob[row], rtol=1e-5, atol=1e-5)


def test_a_request_gets_the_same_beams_alone_and_in_company(trained: Grm, world: SmallWorld) -> None:
    asked = people(4)
    together = trained.beam(collate(asked, world.vocabulary, trained.config), [4, 8, 8])
    for row, person in enumerate(asked):
        alone = trained.beam(collate([person], world.vocabulary, trained.config), [4, 8, 8])
        assert torch.equal(together.sids[row], alone.sids[0])


@pytest.mark.parametrize("kind", ["bits", "lists", "two layers"])
def test_a_trie_allows_only_its_sids_and_does_not_change_how_likely_they_are(kind: str, trained: Grm, world: SmallWorld) -> None:
    allowed = [EVERY_SID[index] for index in (3, 40, 41, 77, 119)]
    trie: Prefixes = Trie.build(torch.tensor(allowed), CODES, dense_levels=0 if kind == "lists" else 3)
    if kind == "two layers":
        trie = Layered.of(Trie.build(torch.tensor(allowed[::2]), CODES)).append(torch.tensor(allowed))
    found = trained.beam(collate(people(2), world.vocabulary, trained.config), [6, 30, 8], trie)
    for row, person in enumerate(people(2)):
        every = exhaustive(trained, person)
        expected = sorted(((every[EVERY_SID.index(sid)].item(), sid) for sid in allowed), reverse=True)
        assert [tuple(sid) for sid in found.sids[row, :5].tolist()] == [sid for _, sid in expected]
        assert found.log_prob[row, :5].tolist() == pytest.approx([score for score, _ in expected], rel=1e-4)
        assert (found.log_prob[row, 5:] == float("-inf")).all()
        assert (found.sids[row, 5:] == -1).all()


def test_a_catalogue_of_thousands_is_ranked_as_scoring_each_of_its_sids_ranks_it(world: SmallWorld) -> None:
    sizes = (24, 20, 16)
    model = disturbed(Grm(small_config(codes=sizes, layers=1)))
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    sids = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(5))[:5000]]
    person = people(3)[2]
    vocabulary = Vocabulary(np.arange(60), sids[:60].int().numpy(), np.full(60, 9000), np.arange(60) % 12, sizes)
    found = model.beam(collate([person], vocabulary, model.config), [24, 480, 300], Trie.build(sids, sizes))
    with torch.no_grad():
        scores = torch.cat(
            [
                model.log_prob(collate([person] * len(part), vocabulary, model.config).with_targets(part.tolist())).sum(1)
                for part in sids.split(1000)
            ]
        )
    place = {tuple(sid): index for index, sid in enumerate(sids.tolist())}
    assert_margin(scores.double(), torch.tensor([place[tuple(sid)] for sid in found.sids[0].tolist()]), found.log_prob[0])


def test_each_level_keeps_what_a_search_in_float64_with_a_dictionary_keeps(trained: Grm, world: SmallWorld) -> None:
    """Level by level, the reference's beams fed in: a near tie that is lost legitimately takes its descendants with it."""
    allowed = EVERY_SID[::3]
    followers: dict[tuple[int, ...], set[int]] = {}
    for sid in allowed:
        for level in range(len(sid)):
            followers.setdefault(sid[:level], set()).add(sid[level])
    person = people(4)[3]
    context = trained.encode(collate([person], world.vocabulary, trained.config))
    exact = copy.deepcopy(trained.decoder).double()
    wide = Encoded(tuple(key.double() for key in context.keys), tuple(value.double() for value in context.values), context.bias.double())
    growing = beam.Growing(trained.decoder, [], context, 7, Trie.build(torch.tensor(allowed), CODES))
    beams: dict[tuple[int, ...], float] = {(): 0.0}
    for level, width in enumerate((4, 7, 9)):
        candidates = {}
        for prefix, score in beams.items():
            log_prob = step(exact, wide, prefix, level)
            candidates |= {(*prefix, code): score + log_prob[code].item() for code in followers[prefix]}
        order = list(candidates)
        with torch.inference_mode():
            found, parent, token = growing.select(width)
        prefixes = list(beams)
        alive = [slot for slot in range(width) if token[0, slot] >= 0]
        chosen = [(*prefixes[int(parent[0, slot])], int(token[0, slot])) for slot in alive]
        ranks = torch.tensor([order.index(prefix) for prefix in chosen])
        assert_margin(torch.tensor(list(candidates.values()), dtype=torch.float64), ranks, found[0, alive])
        best = sorted(candidates, key=lambda prefix: -candidates[prefix])[:width]
        beams = {prefix: candidates[prefix] for prefix in best}
        with torch.inference_mode():
            growing.keep(
                torch.tensor([[candidates[prefix] for prefix in best]]).float(),
                torch.tensor([[prefixes.index(prefix[:-1]) for prefix in best]]).int(),
                torch.tensor([[prefix[-1] for prefix in best]]).int(),
            )


def test_what_is_avoided_is_not_found_and_nothing_else_is_lost(trained: Grm, world: SmallWorld) -> None:
    asked = people(2)
    batch = collate(asked, world.vocabulary, trained.config)
    whole = torch.tensor([[EVERY_SID[0], EVERY_SID[7]], [EVERY_SID[9], (-1, -1, -1)]])
    begun = torch.tensor([[(0, 1), (-1, -1)], [(1, 2), (1, 3)]])
    found = trained.beam(batch, [6, 30, 20], avoid=[whole, begun])
    for row, person in enumerate(asked):
        avoided = {tuple(sid) for sid in whole[row].tolist()}, {tuple(prefix) for prefix in begun[row].tolist()}
        allowed = [index for index, sid in enumerate(EVERY_SID) if sid not in avoided[0] and sid[:2] not in avoided[1]]
        score, order = exhaustive(trained, person)[allowed].topk(20)
        assert found.sids[row].tolist() == [list(EVERY_SID[allowed[index]]) for index in order]
        torch.testing.assert_close(found.log_prob[row], score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [slice(None, None, 2), slice(3, None, 11)])
def test_a_trie_and_what_is_avoided_hold_together(trained: Grm, world: SmallWorld, kept: slice) -> None:
    batch = collate(people(2), world.vocabulary, trained.config)
    existing = torch.tensor(EVERY_SID[kept])
    some = existing[:3].expand(2, -1, -1)
    found = trained.beam(batch, [6, 30, 60], Trie.build(existing, CODES), [some])
    expected = trained.beam(batch, [6, 30, 60], Trie.build(existing[3:], CODES))
    assert torch.equal(found.sids, expected.sids)
    assert torch.equal(found.log_prob, expected.log_prob)


def test_fewer_results_are_the_first_of_more(trained: Grm, world: SmallWorld) -> None:
    batch = collate(people(2), world.vocabulary, trained.config)
    few, many = trained.beam(batch, [3, 5, 6]), trained.beam(batch, [3, 5, 12])
    assert torch.equal(few.sids, many.sids[:, :6])
    assert torch.equal(few.log_prob, many.log_prob[:, :6])


def test_nothing_is_read_that_was_not_written(trained: Grm, world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(people(3), world.vocabulary, trained.config)
    trie = Trie.build(torch.tensor(EVERY_SID[::2]), CODES)
    expected = trained.beam(batch, [4, 6, 8], trie)
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, plain=plain, **named: poisoned(plain(*given, **named)))
    found = trained.beam(batch, [4, 6, 8], trie)
    assert torch.equal(found.sids, expected.sids)
    assert torch.equal(found.log_prob, expected.log_prob)


@pytest.mark.parametrize("changes", [{}, {"context_splits": 2, "context_groups": 2}, {"lazy_trunk": 1}, {"thinking_tokens": True}])
def test_static_shapes_find_what_shapes_of_their_own_find(changes: dict[str, int], world: SmallWorld) -> None:
    model = disturbed(Grm(small_config(**changes)))
    graph = BeamGraph(model)
    for count in (4, 3, 1, 4):  # what an earlier, larger batch left in the buffers must not be seen
        batch = collate(people(count), world.vocabulary, model.config)
        avoid = [model.beam(batch, [4, 6, 8]).sids[:, : 2 * count]] if count > 1 else []
        found, expected = graph(batch, [4, 6, 8], avoid), model.beam(batch, [4, 6, 8], avoid=avoid)
        assert torch.equal(found.sids, expected.sids)
        torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"context_splits": 2, "context_groups": 2}, {"lazy_trunk": 1}])
def test_a_decoder_in_16_bits_is_searched_with_the_same_context_and_priors(changes: dict[str, int], world: SmallWorld) -> None:
    model = disturbed(Grm(small_config(**changes)))
    batch = collate(people(3), world.vocabulary, model.config)
    widths = [len(EVERY_SID)] * model.config.levels
    expected = model.beam(batch, widths)
    model.decoder.to(torch.bfloat16)
    for search in (model.beam, BeamGraph(model)):
        found = search(batch, widths)
        for row, sids in enumerate(found.sids.tolist()):
            worth = dict(zip(map(tuple, expected.sids[row].tolist()), expected.log_prob[row].tolist(), strict=True))
            apart = [abs(score - worth[tuple(sid)]) for sid, score in zip(sids, found.log_prob[row].tolist(), strict=True)]
            assert 0 < max(apart) < 0.1


def test_experts_have_no_static_shapes() -> None:
    with pytest.raises(ValueError, match=r"search it with Grm\.beam"):
        BeamGraph(Grm(small_config(experts=2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("changes", [{}, {"thinking_tokens": True}])
def test_a_replay_is_the_eager_search(changes: dict[str, object], world: SmallWorld) -> None:
    model = disturbed(Grm(small_config(**changes), torch.device("cuda")))
    graph = BeamGraph(model)
    for count in (4, 3, 1, 4):
        batch = collate(people(count), world.vocabulary, model.config).to("cuda")
        found, again, expected = graph(batch, [4, 6, 8]), graph(batch, [4, 6, 8]), model.beam(batch, [4, 6, 8])
        assert torch.equal(found.sids, again.sids) and torch.equal(found.log_prob, again.log_prob)
        assert torch.equal(found.sids, expected.sids)
        torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)


def test_widths_that_do_not_fit_are_refused(trained: Grm, world: SmallWorld) -> None:
    batch = collate(people(1), world.vocabulary, trained.config)
    for widths in ([4, 4], [4, 0, 4], [4, 4, 4, 4]):
        with pytest.raises(ValueError, match="one per level"):
            trained.beam(batch, widths)
