"""The compiled search finds what that of torch finds, with the weights of the moment, in any number of threads."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from kernels import native
from kernels.prior import Priors
from kernels.trie import Prefixes, Trie
from kernels.trie.layered import Layered
from model.grm import Grm, GrmBatch, Query, collate
from model.grm.beam import Beams
from model.grm.inputs import Vocabulary
from model.online.publish import Publisher, load_current
from model.online.step import LearnerConfig, OnlineLearner
from model.store import ModelStore
from streaming.records import Context, HistoryEntry
from tests.kernels.marks import needs_library
from tests.model.conftest import START_MS, SmallWorld, small_config, small_world

pytestmark = needs_library

SIZES = (
    {"d_model": 32, "heads": 4, "self_groups": 2},
    {"d_model": 36, "heads": 3, "self_groups": 1, "context_groups": 3, "ffn": 50},
    {"d_model": 40, "heads": 4, "self_groups": 4, "context_groups": 2, "ffn": 33},
    {"d_model": 15, "heads": 1, "self_groups": 1, "ffn": 17},
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"lazy_trunk": 1},
    {"layers": 3, "lazy_trunk": 2, "value_buckets": 3, "value_rank": 1.5},
    {"thinking_tokens": True},
    {"thinking_tokens": True, "thinking_goal": 0.1, "value_buckets": 5, "value_rank": 0.5},
    {"value_buckets": 3},
)


def shaken(model: Grm, seed: int = 1) -> Grm:
    """Weights that are anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.dense_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.requires_grad else 0.0))
            if name.endswith("worth"):
                parameter.copy_(torch.linspace(0, 2, len(parameter)))
    return model.eval()


def asked(model: Grm, people: int, vocabulary: Vocabulary | None = None) -> GrmBatch:
    history = [[HistoryEntry(user * 3 + n, START_MS - n * 5000, 4000) for n in range(user % 7)] for user in range(people)]
    rows = [Query(user, START_MS, Context(seen)) for user, seen in enumerate(history)]
    return collate(rows, vocabulary or small_world().vocabulary, model.config)


def by_torch(model: Grm, *arguments: Any) -> Beams:
    with patch.object(native, "library", lambda: None):
        return model.beam(*arguments)


def assert_alike(ours: Beams, theirs: Beams, margin: float = 1e-4) -> None:
    """The same SIDs, up to near ties for the last place, with the same probabilities."""
    for row in range(len(ours.sids)):
        one, other = (
            {tuple(sid): score for sid, score in zip(of.sids[row].tolist(), of.log_prob[row].tolist(), strict=True) if score > -np.inf}
            for of in (ours, theirs)
        )
        assert len(one) == len(other)
        for sid, score in one.items():
            assert abs(score - other.get(sid, min(other.values()))) < margin
        for sid in other.keys() - one.keys():
            assert other[sid] < min(one.values()) + margin


@pytest.mark.parametrize("seed", range(36))
def test_it_finds_what_torch_finds(seed: int) -> None:
    chance = random.Random(seed)
    codes = tuple(chance.choice([2, 5, 16, 17, 40, 300]) for _ in range(chance.choice([2, 3, 4])))
    changes = {"codes": codes, "layers": 2, "context_splits": chance.choice([1, 2]), "context_layers": chance.choice([1, 2])}
    config = small_config(**{**changes, **SIZES[seed % len(SIZES)], **OPTIONS[seed % len(OPTIONS)]})
    model = shaken(Grm(config), seed)
    rng = np.random.default_rng(seed)
    sids = np.unique(np.stack([rng.integers(size, size=500) for size in codes], 1), axis=0)
    items = np.arange(60)
    vocabulary = Vocabulary(items, sids[rng.integers(len(sids), size=60)].astype(np.int32), np.full(60, 9000), items % 12, codes)
    trie: Prefixes | None = None
    if kind := chance.choice([None, "bits", "lists", "two layers"]):
        trie = Trie.build(torch.tensor(sids[::2]), codes, dense_levels=0 if kind == "lists" else len(codes))
        if kind == "two layers":
            trie = Layered.of(trie).append(torch.tensor(sids))
    batch, widths = asked(model, chance.choice([1, 3, 20]), vocabulary), [chance.choice([1, 7, 33]) for _ in codes]
    avoid = [by_torch(model, batch, widths, trie).sids[:, ::3]] if chance.random() < 0.5 else []
    assert model.decoder.packed() is not None
    found, expected = model.beam(batch, widths, trie, avoid), by_torch(model, batch, widths, trie, avoid)
    assert_alike(found, expected)
    if (best := found.sids[:, 0]).min() >= 0:
        told = model.log_prob(batch.with_targets(best.tolist())).sum(1).detach()
        torch.testing.assert_close(found.log_prob[:, 0], told, rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"codes": (40, 33, 70, 9), "d_prefix": 12}, {"value_buckets": 3, "value_rank": 0.5}])
def test_priors_in_one_call_find_what_three_priors_find(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(Grm(small_config(**changes)))
    sizes = model.config.codes
    catalogue = torch.stack([torch.randint(size, (60,), generator=torch.Generator().manual_seed(size)) for size in sizes], 1)
    items = np.arange(60)
    batch = asked(model, 5, Vocabulary(items, catalogue.int().numpy(), np.full(60, 9000), items % 12, sizes))
    model.followers.learn(model.resolve(batch).memory, catalogue[:5])
    widths = [6, 20, 20, 20][: len(sizes)]
    avoid = [model.beam(batch, widths).sids[:, ::2, :length].contiguous() for length in (len(sizes), 2)]
    said = []
    monkeypatch.setattr(Priors, "next", lambda priors, codes, ours=Priors.next: said.append(codes) or ours(priors, codes))
    found = model.beam(batch, widths, avoid=avoid)
    assert len(said) == len(sizes)
    monkeypatch.setattr(native, "library", lambda: None)
    expected = model.beam(batch, widths, avoid=avoid)
    assert len(said) == len(sizes)
    assert torch.equal(found.sids, expected.sids)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-4)


def test_where_other_operations_round_to_bfloat16_it_finds_what_torch_finds() -> None:
    model = shaken(Grm(small_config()))
    batch = asked(model, 3)
    context = model.encode(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.search(context, batch.memory, model.followers.read(batch.memory), [6, 30, 120])
    best = by_torch(model, batch, [6, 30, 120])
    for row in range(3):
        score = {tuple(sid): score for sid, score in zip(best.sids[row].tolist(), best.log_prob[row].tolist(), strict=True)}
        for sid, close in zip(found.sids[row].tolist(), found.log_prob[row].tolist(), strict=True):
            assert abs(score[tuple(sid)] - close) < 0.1


def anew(model: Grm) -> Grm:
    """A model of its own with the same weights, which has never searched."""
    other = Grm(model.config)
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return other.eval()


def assert_current(model: Grm) -> None:
    """A search has the bits of one with a model that has nothing packed from before."""
    batch = asked(model, 3)
    found, expected = model.beam(batch, [4, 8, 8]), anew(model).beam(batch, [4, 8, 8])
    assert torch.equal(found.sids, expected.sids) and torch.equal(found.log_prob, expected.log_prob)


@pytest.mark.parametrize("fused", [True, False])
def test_a_search_after_an_optimizer_step_has_the_new_weights_and_packs_them_once(fused: bool, world: SmallWorld) -> None:
    model = shaken(Grm(small_config()))
    optimizer = torch.optim.AdamW([parameter for _, parameter in model.dense_parameters()], lr=0.1, fused=fused)
    batch = asked(model, 3).with_targets(world.sids[:3].tolist())
    before = model.decoder.packed()
    assert before is not None and model.decoder.packed() is before
    for _ in range(2):
        model.beam(batch, [4, 8, 8])
        assert model.decoder.packed() is before
        model.loss(batch, torch.ones(3)).backward()
        assert model.decoder.packed() is before
        optimizer.step()
        assert_current(model)
        after, before = before, model.decoder.packed()
        assert after is not before


@pytest.mark.parametrize("assign", [False, True])
def test_a_search_after_weights_were_loaded_has_those(assign: bool) -> None:
    model = shaken(Grm(small_config()))
    for seed in range(2, 5):
        model.beam(asked(model, 1), [4, 8, 8])
        model.decoder.load_state_dict(shaken(Grm(model.config), seed).decoder.state_dict(), assign=assign)
        assert_current(model)


def test_a_search_has_a_new_parameter_that_lies_where_one_lay_before() -> None:
    model = shaken(Grm(small_config()))
    norm = model.decoder.norms[0]
    norm.weight = torch.nn.Parameter(torch.rand(32))
    model.beam(asked(model, 1), [4, 8, 8])
    before = id(norm.weight)
    for _ in range(1000):  # one of the first of these takes its place, if nothing keeps it
        norm.weight = torch.nn.Parameter(torch.rand(32))
        if id(norm.weight) == before:
            break
    assert_current(model)


def test_a_search_after_a_single_number_was_written_has_it() -> None:
    model = shaken(Grm(small_config(value_buckets=3, value_rank=1.0, lazy_trunk=1)))
    for name, parameter in model.decoder.named_parameters():
        model.beam(asked(model, 1), [4, 8, 8])
        with torch.inference_mode(name.endswith("bias")), torch.no_grad():
            parameter.view(-1)[0] += 0.5
        assert_current(model)


def test_a_copy_searches_with_its_own_weights() -> None:
    model = shaken(Grm(small_config()))
    model.beam(asked(model, 1), [4, 8, 8])
    other = copy.deepcopy(model)
    shaken(other, 2)
    assert_current(other)
    assert_current(model)


def test_what_a_delta_published_is_searched_with(tmp_path: Path, world: SmallWorld) -> None:
    learner = OnlineLearner(Grm(small_config()), world.vocabulary, LearnerConfig(window=100, beam=6, recall_share=0.2))
    publisher, samples = Publisher(ModelStore(tmp_path), "b1", full_share=1.0), world.samples(96)
    for first in range(0, 96, 32):
        learner.step(samples[first : first + 32])
        taken = publisher.take(learner.model, learner.fitter.take_touched(), {})
        publisher.publish(taken, learner.model.config, offsets={}, watermark_ts=0, samples_trained=0, metrics={})
        served = load_current(ModelStore(tmp_path))
        assert (served.manifest.base is None) == (first == 0)
        batch = asked(served.model, 3)
        mine, theirs = learner.model.eval().beam(batch, [4, 8, 8]), served.model.beam(batch, [4, 8, 8])
        assert torch.equal(mine.sids, theirs.sids) and torch.equal(mine.log_prob, theirs.log_prob)
        assert_current(learner.model)


@pytest.mark.parametrize("changes", [{}, {"thinking_tokens": True}, {"value_buckets": 3, "value_rank": 1.0}])
def test_searches_at_once_with_one_decoder_find_what_each_finds_alone(changes: dict[str, Any]) -> None:
    torch.set_num_threads(2)  # and each search shares its rows out to the same second thread
    model = shaken(Grm(small_config(**changes)))
    requests = [(asked(model, people), [6, 24, width]) for people, width in ((1, 8), (9, 40), (4, 16))]
    alone = [model.beam(*request) for request in requests]
    start = Barrier(len(requests))

    def search(place: int) -> list[Beams]:
        start.wait()
        return [model.beam(*requests[place]) for _ in range(12)]

    with ThreadPoolExecutor(len(requests)) as pool:
        for found, expected in zip(pool.map(search, range(len(requests))), alone, strict=True):
            for each in found:
                assert torch.equal(each.sids, expected.sids) and torch.equal(each.log_prob, expected.log_prob)


def test_a_search_goes_on_with_what_it_began_with_while_another_packs_anew() -> None:
    model = shaken(Grm(small_config()))
    batch, biases = asked(model, 4), [head.bias for head in model.decoder.heads]
    first, start = model.beam(batch, [6, 24, 16]), Barrier(2)

    def search() -> list[Beams]:
        start.wait()
        return [model.beam(batch, [6, 24, 16]) for _ in range(30)]

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        searching = pool.submit(search)
        start.wait()
        while not searching.done():
            for bias in biases:
                bias.mul_(1.0)  # counts as a change, and is none
            model.decoder.packed()
            torch.empty(1 << 20).fill_(torch.nan)  # into what was given back
        for found in searching.result():
            assert torch.equal(found.sids, first.sids) and torch.equal(found.log_prob, first.log_prob)
