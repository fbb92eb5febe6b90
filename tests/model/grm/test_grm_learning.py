"""The model as a whole: it learns, it is reproducible, and both presets exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.grm import PRESETS, Grm, GrmConfig, Query, collate, preset
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, small_config


def test_a_few_targets_are_learned_by_heart(model: Grm, world: SmallWorld) -> None:
    rows = [Query(user, START_MS, Context([HistoryEntry(user * 2, START_MS - 100, 9000)])) for user in range(8)]
    batch = collate(rows, world.vocabulary, model.config).with_targets([world.sids[user * 7].tolist() for user in range(8)])
    optimizer = torch.optim.AdamW([parameter for _, parameter in model.dense_parameters()], lr=3e-3)
    first = model.loss(batch, torch.ones(8)).item()
    for _ in range(120):
        optimizer.zero_grad()
        loss = model.loss(batch, torch.ones(8))
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(sum(torch.tensor(CODES).log()).item() / len(CODES), rel=0.05)
    assert loss.item() < 0.02


def test_the_first_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = Grm(small_config(seed=5)).state_dict()
    torch.manual_seed(2)
    two, other = Grm(small_config(seed=5)).state_dict(), Grm(small_config(seed=6)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_making_a_model_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Grm(small_config())
    assert torch.equal(torch.get_rng_state(), before)


def test_only_rows_that_were_read_change(model: Grm, world: SmallWorld) -> None:
    before = {name: table.clone() for name, table in model.tables().items()}
    batch = collate([Query(1, START_MS, Context([HistoryEntry(4, START_MS - 9, 50)]))], world.vocabulary, model.config).with_targets(
        [[1, 2, 3]]
    )
    model.loss(batch, torch.ones(1)).backward()
    read = {name: jagged.values().tolist() for name, jagged in batch.features.to_dict().items()}
    for name in ("user", "item"):
        assert (model.tables()[name] != before[name]).any(1).nonzero().squeeze(1).tolist() == sorted(read[name])
        assert (model.table_momenta()[name] > 0).nonzero().squeeze(1).tolist() == sorted(read[name])


@pytest.mark.parametrize("changes", [{}, {"context_splits": 2, "context_groups": 4}, {"lazy_trunk": 1}, {"experts": 3}], ids=str)
def test_bfloat16_scores_and_learns_what_float32_does_to_its_rounding(world: SmallWorld, changes: dict[str, Any]) -> None:
    model = Grm(small_config(**changes))
    rows = world.samples(40)[-16:]
    batch = collate(rows, world.vocabulary, model.config).with_targets([world.sids[row.item_id].tolist() for row in rows])
    found = {}
    for bfloat16 in (False, True):
        scores = model(batch, bfloat16=bfloat16)
        asked = [model.decoder.blocks[-1].self.out.weight, model.decoder.heads[0].weight]
        gradients = torch.autograd.grad(scores.loss(torch.ones(16)), asked)
        found[bfloat16] = scores.log_prob, scores.summary, *gradients
    for exact, rounded in zip(found[False], found[True], strict=True):
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_target_outside_the_codebooks_is_refused(model: Grm, world: SmallWorld) -> None:
    batch = collate([Query(1, START_MS, Context())], world.vocabulary, model.config)
    for sid in ([CODES[0], 0, 0], [-1, 0, 0], [0, 0]):
        with pytest.raises(ValueError, match="outside the codebooks"):
            model(batch.with_targets([sid]))
    two = collate([Query(1, START_MS, Context())] * 2, world.vocabulary, model.config)
    with pytest.raises(ValueError, match=r"row 1: the target SID \[0, 99, 0\]"):
        model(two.with_targets([[0, 0, 0], [0, 99, 0]]))
    with pytest.raises(ValueError, match="no targets"):
        model(batch)


def test_the_laptop_preset_has_about_two_million_dense_parameters() -> None:
    model = Grm(preset("laptop", (64, 64, 64, 64)))
    assert 1.8e6 < sum(parameter.numel() for _, parameter in model.dense_parameters()) < 5e6


def test_the_reference_preset_learns_from_a_tiny_batch(world: SmallWorld) -> None:
    # Its tables are cut down; the dense part is whole: 7 layers of 768, vocabulary 8,192.
    config = preset("reference", PRESETS["reference"].codes[:3], user_rows=256, item_rows=256, prefix_rows=256)
    model = Grm(config)
    assert (config.layers, config.d_model, config.heads, config.ffn, config.codes[0]) == (7, 768, 12, 3072, 8192)
    batch = collate([Query(1, START_MS, Context([HistoryEntry(4, START_MS - 9, 50)]))], world.vocabulary, config).with_targets(
        [[8191, 2, 3]]
    )
    before = model.loss(batch, torch.ones(1))
    before.backward()
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.05)
    assert model.loss(batch, torch.ones(1)).item() < before.item()


@pytest.mark.parametrize("changes", [{"codes": ()}, {"heads": 5}, {"self_groups": 3}, {"context_splits": 3}])
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is"):
        small_config(**changes)


def test_a_configuration_survives_json() -> None:
    assert GrmConfig.from_json(small_config().to_json()) == small_config()
