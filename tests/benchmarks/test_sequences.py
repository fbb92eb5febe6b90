"""Sequences: floors, the cross-entropy in pieces, the GRM's two passes against each other, and resumption."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from benchmarks.sequences import causal, data, floors
from benchmarks.sequences.fitting import Schedule, fit
from benchmarks.sequences.grm import Settings, codes_for
from benchmarks.sequences.metrics import Ranks
from benchmarks.sequences.sasrec import SasRec
from benchmarks.sequences.sasrec import Settings as SasRecSettings
from benchmarks.sequences.sequence_grm import SequenceGrm, Shape
from benchmarks.sequences.transitions import COMMON, LATER, LEAST, OLDER, Transitions

ITEMS = 24
SHAPE = Shape(codes=8, d_model=16, encoder_layers=1, decoder_layers=2, followers=4, dropout=0.2, decoder_dropout=0.2)


def small_grm() -> SequenceGrm:
    rng = np.random.default_rng(3)
    sids = rng.permutation(64)[:ITEMS]
    torch.manual_seed(3)
    model = SequenceGrm(np.stack([sids // 8, sids % 8], 1).astype(np.int32), rng.standard_normal((ITEMS, 4)).astype(np.float32), SHAPE)
    for weight in (model.popularity, *(head.bias for head in model.decoder.heads)):
        torch.nn.init.normal_(weight)  # type: ignore[arg-type]
    return model.eval()


def test_the_cross_entropy_in_pieces_is_the_cross_entropy_and_so_are_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(causal.CHUNK + 37, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 12, (len(states),), generator=generator)
    logits = (states @ table.T)[:, 1:]
    expected = torch.autograd.grad(3 * functional.cross_entropy(logits, targets - 1), (states, table))
    loss = causal.full_cross_entropy(states, table, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets - 1))
    for found, wanted in zip(torch.autograd.grad(3 * loss, (states, table)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70))
def test_every_item_but_the_first_is_a_target_once(length: int) -> None:
    pieces = causal.windows([list(range(1, length + 1))])
    assert sorted(item for piece in pieces for item in piece[1:]) == list(range(2, length + 1))
    assert all(len(piece) <= data.HISTORY + 1 for piece in pieces)


def test_a_batch_shifts_every_piece_by_one_and_no_piece_is_lost() -> None:
    pieces = [list(range(1, 2 + length)) for length in range(1, 9)]
    ((inputs, targets),) = causal.batches(pieces, np.random.default_rng(0))
    assert sorted((inputs > 0).sum(1).tolist()) == list(range(1, 9))
    assert torch.equal(targets, torch.where(inputs > 0, inputs + 1, 0))


def test_one_pass_over_a_sequence_scores_its_last_target_as_the_search_does() -> None:
    model = small_grm()
    model.count([[1, 2, 3], [2, 5, 9, 4]])
    history, target = [7, 2, 5], 9
    targets = torch.zeros(1, 3, dtype=torch.int64)
    targets[0, 2] = target
    # Counted apart from the training target, which the training pass takes out.
    model.followers.table[...] = model.followers.table.masked_fill(
        (model.followers.table[..., :2] == model.sid[target] + 1).all(-1, True), 0
    )
    found = model.loss(torch.tensor([history]), targets)
    heads = model.heads([history])
    torch.testing.assert_close(found, -(heads["sid"][0, target] + heads["item"][0, target]))


def test_a_later_item_changes_no_earlier_position() -> None:
    model = small_grm()
    targets = torch.tensor([[4, 0, 0]])
    one, other = (model.loss(torch.tensor([[7, *rest]]), targets) for rest in ([2, 5], [11, 1]))
    torch.testing.assert_close(one, other)


def test_probabilities_of_all_sids_sum_to_one_where_the_beam_holds_every_prefix() -> None:
    heads = small_grm().heads([[3, 4], [5]])
    for head in heads.values():
        torch.testing.assert_close(head[:, 1:].exp().sum(1), torch.ones(2))


def test_a_padded_history_scores_as_it_does_alone() -> None:
    model = small_grm()
    model.count([[1, 2, 3], [3, 5, 9, 4]])
    together, alone = model.heads([[3, 4, 8, 1], [5, 2]]), model.heads([[5, 2]])
    for name, head in alone.items():
        torch.testing.assert_close(together[name][1:, 1:], head[:, 1:])


@pytest.mark.parametrize("which", ["grm", "sasrec"])
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(which: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pieces = [rng.integers(1, ITEMS + 1, 6).tolist() for _ in range(12)]
    schedule = Schedule(lr=1e-3, weight_decay=0.0, epochs=3, patience=3)

    def run(folder: Path, stop: int) -> torch.Tensor:
        model = small_grm() if which == "grm" else SasRec(ITEMS, SasRecSettings(d_model=8))
        fit(model, pieces, schedule, lambda: {"r10": 0.0, "n10": 0.0}, 7, folder, {"which": which}, lambda line: None, stop=stop)
        return model.items.weight.detach().clone()

    torch.manual_seed(1)
    whole = run(tmp_path / "whole", 3)
    torch.manual_seed(1)
    run(tmp_path / "stopped", 1)
    assert torch.equal(run(tmp_path / "stopped", 3), whole)


def test_transitions_fall_with_lag_and_with_age() -> None:
    head = Transitions([[1, 2, 3]], 4)
    found = np.exp(head.log_score([[1]])[0])
    norm = (1 + LATER + COMMON) ** 0.5
    np.testing.assert_allclose(found[1:], [LEAST, LEAST + 1 / norm, LEAST + LATER / norm, LEAST], rtol=1e-5)
    older = np.exp(head.log_score([[1, 4]])[0])
    np.testing.assert_allclose(older[2], LEAST + OLDER / norm, rtol=1e-5)


def test_markov_ranks_what_followed_and_ties_win_nothing() -> None:
    found = data.Data("tiny", 3, [[1, 2, 1, 1], [1, 2, 3, 3]], np.zeros((3, 2), np.float32))
    scores = floors.markov(found, found.train())([[1]])
    assert scores[0].argmax() == 2
    ranks = Ranks()
    ranks.scores(np.zeros((1, 102), np.float32), [5])
    assert ranks.summary()["r10"] == 0.0


def test_a_line_that_is_too_short_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "Tiny.txt").write_text("1 1 2 3 4\n2 1 2 3\n")
    with pytest.raises(data.LayoutError, match=r"Tiny.txt, line 2: expected at least 4 items"):
        data.load(tmp_path, "Tiny")


def test_attributes_are_reduced_where_no_ready_ones_are_there(tmp_path: Path) -> None:
    (tmp_path / "Tiny.txt.gz").write_bytes(gzip.compress(b"1 1 2 3 4\n2 1 2 3 4\n"))
    (tmp_path / "Tiny_item2attributes.json").write_text('{"1": [7], "2": [7], "3": [9]}')
    found = data.load(tmp_path, "Tiny").attributes
    assert found.shape[0] == 4
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0], atol=1e-6)


def test_codes_grow_with_the_catalogue() -> None:
    assert codes_for(12_101, Settings()) == 256
    assert codes_for(60_000, Settings()) ** 2 >= 3 * 60_000
