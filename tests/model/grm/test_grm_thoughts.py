"""S²GR's thinking tokens: thoughts are what plain arithmetic says, the search thinks as training does, and the first thought has a goal."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.grm import Grm, GrmBatch, GrmConfig, Query, collate
from model.grm.decoder import Decoder
from model.grm.fit import Fitter
from model.grm.goal import Goal
from model.grm.thinking import TEMPERATURE
from model.online.step import LearnerConfig, LearnerState, OnlineLearner
from streaming.records import Context, HistoryEntry
from tests.model.conftest import CODES, START_MS, SmallWorld, published, small_config, small_world
from tests.model.grm.test_grm_decoder import decoder_of, plain_states, random_context, rms
from tests.model.grm.test_grm_thinking import codebooks

EVERY_SID = list(itertools.product(*(range(size) for size in CODES)))
WHOLE = {"thinking_tokens": True, "thinking": 3, "thinking_goal": 0.1}


def thoughtful(**changes: Any) -> Grm:
    model = Grm(small_config(**(WHOLE | changes)))
    if model.thinking is not None:
        model.thinking.use(codebooks())
    return model


def asked(world: SmallWorld, model: Grm, people: int = 8) -> GrmBatch:
    rows = [Query(user, START_MS, Context([HistoryEntry(user * 2, START_MS - 100, 9000)])) for user in range(people)]
    return collate(rows, world.vocabulary, model.config).with_targets([world.sids[user * 7].tolist() for user in range(people)])


def plain_thoughts(decoder: Decoder, context: Any, sid: list[int], row: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The states that predict the codes, and the thoughts, everything computed anew for every position."""
    assert decoder.think is not None
    inputs, states, thoughts = [], [], []
    for level in range(len(sid)):
        token = decoder.start if level == 0 else decoder.codes[level - 1].weight[sid[level - 1]]
        inputs.append(token + decoder.position[level])
        thought = rms(plain_states(decoder, context, inputs, row)[-1], decoder.think.norm) + decoder.think.place[level]
        inputs.append(thought)
        thoughts.append(thought)
        states.append(plain_states(decoder, context, inputs, row)[-1])
    return states, thoughts


@pytest.mark.parametrize("changes", [{}, {"context_layers": 2, "context_splits": 2, "context_groups": 2}, {"self_groups": 1, "layers": 3}])
def test_states_and_thoughts_are_those_of_plain_arithmetic(changes: dict[str, Any]) -> None:
    decoder = decoder_of(small_config(thinking_tokens=True, **changes))
    context, sids = random_context(decoder.config, 2, 5), torch.tensor([[1, 2, 3], [5, 0, 1]])
    hidden, thoughts = decoder.teach(sids.unsqueeze(1), context)
    assert thoughts is not None
    for row in range(2):
        states, thought = plain_thoughts(decoder, context, sids[row].tolist(), row)
        torch.testing.assert_close(hidden[row, 0], torch.stack(states), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(thoughts[row, 0], torch.stack(thought), rtol=1e-9, atol=1e-9)


def test_gradients_through_the_thoughts_are_those_of_finite_differences() -> None:
    decoder = decoder_of(small_config(d_model=8, heads=2, self_groups=1, ffn=6, thinking_tokens=True))
    context, sids = random_context(decoder.config, 2, 3), torch.tensor([[[1, 2, 3]], [[5, 0, 1]]])
    assert decoder.think is not None

    def last(keys: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        return decoder.teach(sids, replace(context, keys=(keys,), values=(keys,)))[0][..., -1, :4]

    place = decoder.think.place
    assert torch.autograd.gradcheck(last, (context.keys[0].clone().requires_grad_(True), place))
    moved = torch.autograd.grad(last(context.keys[0], place).sum(), place)[0]
    assert (moved.abs().sum(1) > 0).all()  # what was thought before the first code is felt behind the last one


def test_a_thought_knows_the_codes_before_it_and_no_other() -> None:
    decoder = decoder_of(small_config(thinking_tokens=True))
    context = random_context(decoder.config, 1, 4)
    (_, one), (_, two) = (decoder.teach(torch.tensor([[sid]]), context) for sid in ([1, 2, 3], [1, 4, 0]))
    assert one is not None
    assert two is not None
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert not torch.equal(one[:, :, 2], two[:, :, 2])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("changes", [{}, {"layers": 3, "experts": 3}, {"value_buckets": 4}, {"self_groups": 1, "context_splits": 2}])
def test_wide_enough_beams_find_what_trying_every_sid_finds(world: SmallWorld, changes: dict[str, Any]) -> None:
    model = thoughtful(**changes).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    person = Query(3, START_MS, Context([HistoryEntry(n, START_MS - n * 5000, 4000) for n in range(3)]))
    found = model.beam(collate([person, person], world.vocabulary, model.config), [6, 30, 10])
    every = collate([person] * len(EVERY_SID), world.vocabulary, model.config).with_targets(EVERY_SID)
    score, order = model.log_prob(every).sum(1).detach().topk(10)
    for row in range(2):
        assert found.sids[row].tolist() == [list(EVERY_SID[index]) for index in order]
        torch.testing.assert_close(found.log_prob[row], score, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("engine")
def test_narrow_beams_carry_their_own_thoughts(world: SmallWorld) -> None:
    model = thoughtful()
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.dense_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    batch = asked(world, model, 3)
    found = model.beam(batch, [3, 5, 7])
    for beam in range(7):
        score = model.log_prob(replace(batch, targets=found.sids[:, beam])).sum(1)
        torch.testing.assert_close(found.log_prob[:, beam], score.detach(), rtol=1e-5, atol=1e-5)


def test_the_goal_costs_what_its_formulas_say() -> None:
    torch.manual_seed(0)
    config = small_config(**WHOLE)
    goal = Goal(config).double()
    codes = nn.ModuleList(nn.Embedding(size, config.d_model) for size in CODES).double()
    context, thought = random_context(config, 4, 5), torch.randn(4, 32, dtype=torch.float64)
    targets = torch.tensor([[1, 2, 3], [5, 0, 1], [1, 2, 3], [0, 4, 2]])
    found, expected = goal(context, codes, thought, targets), goal.expect(context)

    def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
        return float(one @ two / one.norm() / two.norm())

    means = [sum(codes[level].weight[code] for level, code in enumerate(sid)) / 3 for sid in targets.tolist()]
    for row in range(4):
        others = [other for other in range(4) if other == row or targets[other].tolist() != targets[row].tolist()]
        weights = {other: math.exp(cosine(expected[row], means[other]) / TEMPERATURE) for other in others}
        regularised = 0.1 * (1 - cosine(thought[row], expected[row]))
        assert found[row, 0].item() == pytest.approx(math.log(weights[row] / sum(weights.values())) - regularised, rel=1e-9)
    assert not found[:, 1:].any()


def test_the_thought_is_drawn_to_the_goal_and_never_the_goal_to_the_thought() -> None:
    config = small_config(d_model=8, heads=2, self_groups=1, ffn=6, **WHOLE)
    torch.manual_seed(0)
    goal, codes = Goal(config).double(), nn.ModuleList(nn.Embedding(size, 8) for size in CODES).double()
    context, targets = random_context(config, 3, 4), torch.tensor([[1, 2, 3], [5, 0, 1], [0, 4, 2]])
    one, two = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weights = list(goal.parameters())
    moved = [torch.autograd.grad(goal(context, codes, thought, targets).sum(), weights) for thought in (one, two)]
    assert all(torch.equal(*pair) for pair in zip(*moved, strict=True))
    assert torch.autograd.gradcheck(lambda thought: goal(context, codes, thought, targets), (one,))

    def taught(keys: torch.Tensor) -> torch.Tensor:
        """With a thought that is at the goal wherever that is: L_InfoNCE alone."""
        there = replace(context, keys=(keys,), values=(keys,))
        return goal(there, codes, goal.expect(there).detach(), targets)

    assert torch.autograd.gradcheck(taught, (context.keys[0].clone().requires_grad_(True),))


def test_a_few_targets_are_learned_by_heart_and_thoughts_their_clusters_and_their_goal(world: SmallWorld) -> None:
    model = thoughtful()
    batch, fitter = asked(world, model), Fitter(model)
    first = model(batch).auxiliary
    for _ in range(200):
        fitter.step(batch, torch.ones(8), epochs=True)
    last = model(batch)
    assert -last.log_prob.mean() < 0.02
    assert first is not None
    assert last.auxiliary is not None
    assert (last.auxiliary.mean(0) > first.mean(0) / 4).all()
    assert model.beam(batch, [6, 8, 1]).sids[:, 0].tolist() == world.sids[0:56:7].tolist()


@pytest.mark.usefixtures("engine")
def test_it_continues_bit_for_bit_and_is_published_and_searched_as_it_was_trained(tmp_path: Path, world: SmallWorld) -> None:
    config = LearnerConfig(window=100, beam=6, recall_share=0.2)
    unbroken, first, second = (OnlineLearner(thoughtful(value_buckets=4), small_world().vocabulary, config) for _ in range(3))
    rows = world.samples(192)
    for learner in (unbroken, first):
        learner.step(rows[:96])
    state = first.state()
    first.step(rows[96:150])  # what a killed trainer did after its checkpoint
    second.restore(LearnerState(state.tensors, state.facts))
    for learner in (unbroken, second):
        learner.step(rows[96:])
    one, two = unbroken.state(), second.state()
    assert one.facts == two.facts
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    served = published(unbroken, tmp_path)
    batch = collate([Query(1, START_MS, Context())], world.vocabulary, served.config)
    assert torch.equal(unbroken.model.beam(batch, [4, 8, 8]).log_prob, served.beam(batch, [4, 8, 8]).log_prob)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"thinking_tokens": True, "lazy_trunk": 1}, "choose one"),
        ({"thinking_goal": 0.1}, "thinking_goal is 0.1"),
        ({"thinking_goal": 0.1, "lazy_trunk": 1}, "thinking_goal is 0.1"),
        ({"thinking_tokens": True, "thinking_goal": -0.1}, "thinking_goal is -0.1"),
        ({"thinking_tokens": True, "thinking": 5}, "thinking is 5"),
    ],
)
def test_thoughts_that_cannot_be_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        small_config(**changes)


def test_without_the_option_model_and_configuration_are_as_they_were() -> None:
    plain = small_config()
    assert not {"thinking_tokens", "thinking_goal"} & plain.to_json().keys()
    assert not [name for name in Grm(plain).state_dict() if "think" in name or "goal" in name]
    wanted = small_config(**WHOLE)
    assert GrmConfig.from_json(wanted.to_json()) == wanted
