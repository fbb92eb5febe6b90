"""The value token: it reads the whole SID, its loss is that of its formula, and codes are predicted and searched as without it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.trie import Trie
from model.grm import Grm, GrmBatch, GrmConfig, Query, collate
from model.grm.fit import Fitter
from model.grm.graph import BeamGraph
from model.grm.loss import Valued, value_cross_entropy
from streaming.records import Context, HistoryEntry
from tests.model.conftest import START_MS, SmallWorld, small_config
from tests.model.grm.test_grm_decoder import decoder_of, plain_states, random_context, rms

BUCKETS = 3


def asked(world: SmallWorld, model: Grm, people: int = 8) -> GrmBatch:
    rows = [Query(user, START_MS, Context([HistoryEntry(user * 2, START_MS - 100, 9000)])) for user in range(people)]
    return collate(rows, world.vocabulary, model.config).with_targets([world.sids[user * 7].tolist() for user in range(people)])


def shaken(**changes: object) -> Grm:
    """A model whose weights are anything."""
    model = Grm(small_config(value_buckets=BUCKETS, **changes))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def test_the_distribution_of_values_is_that_of_plain_arithmetic() -> None:
    decoder = decoder_of(small_config(value_buckets=BUCKETS))
    context, sids = random_context(decoder.config, 2, 5), torch.tensor([[1, 2, 3], [5, 0, 1]])
    found = decoder.value(decoder.teach(sids.unsqueeze(1), context)[0][:, 0])
    for row in range(2):
        tokens = [decoder.start, *(decoder.codes[level].weight[code] for level, code in enumerate(sids[row].tolist()))]
        last = plain_states(decoder, context, [token + decoder.position[index] for index, token in enumerate(tokens)], row)[-1]
        logits = decoder.heads[3].weight @ rms(last, decoder.norms[3]) + decoder.heads[3].bias
        torch.testing.assert_close(found[row], logits - torch.log(torch.exp(logits).sum()), rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_weighted_cross_entropy_of_what_is_known() -> None:
    log_prob = torch.log_softmax(torch.randn(4, BUCKETS, dtype=torch.float64), 1)
    valued = Valued(torch.tensor([0, -1, 2, 1]), torch.tensor([1.0, 5.0, 0.5, 0.0], dtype=torch.float64))
    expected = -(1.0 * log_prob[0, 0].item() + 0.5 * log_prob[2, 2].item()) / 1.5
    assert value_cross_entropy(log_prob, valued).item() == pytest.approx(expected, rel=1e-12)
    assert value_cross_entropy(log_prob, replace(valued, bucket=torch.full((4,), -1))).item() == 0


@pytest.mark.parametrize("lazy_trunk", [0, 1])
def test_gradients_are_those_of_finite_differences(lazy_trunk: int) -> None:
    decoder = decoder_of(small_config(d_model=8, heads=2, self_groups=1, ffn=6, value_buckets=BUCKETS, lazy_trunk=lazy_trunk))
    context, sids = random_context(decoder.config, 2, 3), torch.tensor([[[1, 2, 3]], [[5, 0, 1]]])
    valued = Valued(torch.tensor([0, 2]), torch.tensor([1.0, 0.5], dtype=torch.float64))

    def loss(keys: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        hidden, _ = decoder.teach(sids, replace(context, keys=(keys,), values=(keys,)))
        return value_cross_entropy(decoder.value(hidden[:, 0]), valued)

    last = decoder.codes[2].weight  # of the code that only the value reads
    assert torch.autograd.gradcheck(loss, (context.keys[0].clone().requires_grad_(True), last))
    assert torch.autograd.grad(loss(context.keys[0], last), last)[0].any()


@pytest.mark.parametrize("changes", [{}, {"lazy_trunk": 1}, {"thinking_tokens": True}])
def test_the_value_knows_every_code_and_no_code_knows_the_value(world: SmallWorld, changes: dict[str, Any]) -> None:
    model = shaken(**changes)
    batch = asked(world, model)
    before = model(batch)
    assert batch.targets is not None
    for level, size in enumerate(model.config.codes):
        other = batch.targets.clone()
        other[:, level] = (other[:, level] + 1) % size
        assert ((model(replace(batch, targets=other)).value - before.value).abs().amax(1) > 1e-6).all()
    with torch.no_grad():
        model.decoder.heads[-1].weight.add_(1.0)
        model.decoder.position[-1].add_(1.0)
        model.decoder.codes[-1].weight.add_(1.0)
    torch.testing.assert_close(model(batch).log_prob, before.log_prob)


@pytest.mark.parametrize("changes", [{}, {"lazy_trunk": 1}, {"thinking_tokens": True}])
def test_expected_values_of_many_sids_are_those_of_each_alone(world: SmallWorld, changes: dict[str, Any]) -> None:
    model = shaken(**changes)
    assert model.decoder.worth is not None
    with torch.no_grad():
        model.decoder.worth.copy_(torch.tensor([0.0, 0.5, 2.0]))
    batch = asked(world, model, 3)
    sids = torch.tensor(world.sids[:15].reshape(3, 5, 3).astype("int64"))
    sids[2, 4] = -1  # a beam that does not exist
    found = model.expected_value(batch, sids)
    for beam in range(4):
        said = model(replace(batch, targets=sids[:, beam])).value
        expected = [sum(math.exp(row[bucket]) * (0.0, 0.5, 2.0)[bucket] for bucket in range(BUCKETS)) for row in said.tolist()]
        assert found[:, beam].tolist() == pytest.approx(expected, rel=1e-5)
    assert found[2, 4] == 0


@pytest.mark.usefixtures("engine")
def test_a_search_is_one_of_the_codes_alone(world: SmallWorld) -> None:
    model = shaken()
    batch = asked(world, model, 2)
    found = model.beam(batch, [6, 30, 120])
    assert found.log_prob.exp().sum(1).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    score = model.log_prob(replace(batch, targets=found.sids[:, 3])).sum(1)
    torch.testing.assert_close(found.log_prob[:, 3], score.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("changes", [{}, {"lazy_trunk": 1}, {"thinking_tokens": True}, {"layers": 3, "self_groups": 1}])
def test_what_is_found_is_ordered_by_probability_and_value(world: SmallWorld, changes: dict[str, Any]) -> None:
    model = shaken(value_rank=2.0, **changes).eval()
    plain = shaken(**changes).eval()
    with torch.no_grad():
        for each in (model, plain):
            assert each.decoder.worth is not None
            each.decoder.worth.copy_(torch.tensor([0.0, 0.5, 2.0]))
    batch = asked(world, model, 3)
    found, unordered = model.beam(batch, [3, 5, 9]), plain.beam(batch, [3, 5, 9])
    expected = plain.expected_value(batch, unordered.sids)
    order = (unordered.log_prob + 2.0 * expected.clamp(min=1e-3).log()).argsort(1, descending=True)
    assert not torch.equal(order, torch.arange(9).expand(3, 9))
    assert torch.equal(found.sids, unordered.sids.gather(1, order.unsqueeze(-1).expand(3, 9, 3)))
    torch.testing.assert_close(found.log_prob, unordered.log_prob.gather(1, order), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(BeamGraph(model)(batch, [3, 5, 9]).log_prob, found.log_prob, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("engine")
def test_a_beam_that_does_not_exist_stays_the_last_whatever_it_would_be_worth(world: SmallWorld) -> None:
    model = shaken(value_rank=5.0)
    allowed = Trie.build(torch.tensor([[0, 1, 2], [3, 1, 2], [5, 4, 3]]), model.config.codes)
    found = model.beam(asked(world, model, 2), [6, 6, 6], allowed)
    assert (found.log_prob[:, :3].isfinite()).all()
    assert (found.log_prob[:, 3:] == -torch.inf).all()
    assert (found.sids[:, 3:] == -1).all()


def test_a_few_values_are_learned_by_heart_beside_their_sids(world: SmallWorld) -> None:
    model = Grm(small_config(value_buckets=BUCKETS, value_weight=1.0))
    batch, fitter = asked(world, model), Fitter(model)
    valued = Valued(torch.arange(8) % BUCKETS, torch.ones(8))
    for _ in range(250):
        fitter.step(batch, torch.ones(8), epochs=True, valued=valued)
    last = model(batch)
    assert value_cross_entropy(last.value, valued) < 0.02
    assert -last.log_prob.mean() < 0.02


def test_the_share_of_the_loss_is_lambda_of_a_sum_over_levels(world: SmallWorld) -> None:
    told, silent = (Grm(small_config(value_buckets=BUCKETS, value_weight=weight)) for weight in (0.6, 0.0))
    batch, valued = asked(world, told), Valued(torch.zeros(8, dtype=torch.int64), torch.ones(8))
    losses = []
    for model in (told, silent):
        fitter = Fitter(model)
        model.zero_grad()
        fitter.config = replace(fitter.config, clip=math.inf)
        fitter.step(batch, torch.ones(8), valued=valued)
        losses.append(model.decoder.heads[-1].bias.grad.clone())
    # p is flat at first: the gradient of −log p(bucket 0) by its bias is 1/3 − 1, up to the small first weights.
    assert losses[0][0].item() == pytest.approx(0.6 / 3 * (1 / 3 - 1), rel=0.1)
    assert not losses[1].any()


def test_without_the_option_model_and_configuration_are_as_they_were() -> None:
    plain = small_config()
    assert not {"value_buckets", "value_weight", "value_rank"} & plain.to_json().keys()
    assert Grm(plain).decoder.worth is None
    assert len(Grm(plain).decoder.heads) == 3
    asked_for = small_config(value_buckets=4, value_weight=0.5)
    assert GrmConfig.from_json(asked_for.to_json()) == asked_for
    with pytest.raises(ValueError, match="value_buckets is 0"):
        Grm(plain).expected_value(None, torch.zeros(1, 1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"value_buckets": 1}, "value_buckets is 1"),
        ({"value_buckets": -2}, "value_buckets is -2"),
        ({"value_buckets": 4, "value_weight": -0.1}, "value_weight -0.1"),
        ({"value_rank": 1.0}, "value_rank is 1.0"),
        ({"value_buckets": 4, "value_rank": -1.0}, "value_rank is -1.0"),
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        small_config(**changes)
