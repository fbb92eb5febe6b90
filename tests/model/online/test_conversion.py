"""Conversions in the online learner: what each mode weighs, what comes late, and how near the true rate it gets."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from model.grm import Grm
from model.online.checkpoint import Checkpoint, Checkpoints
from model.online.conversion import ConversionConfig, Conversions, Ended, Shown
from model.online.delay import MODES, Mode
from model.online.pending import Pending
from model.online.step import LearnerConfig, OnlineLearner
from streaming.records import Context, Labels, Sample
from tests.model.conftest import SmallWorld, small_config, small_world

D_MODEL, CODES = 5, (4, 3)
WAIT_MS, ATTRIBUTION_MS = 1_000, 20_000


def initial(index: int, ts: int, converted: bool = False, weight: float = 1.0) -> Sample:
    return Sample(
        sample_id=f"{index}:initial",
        kind="initial",
        impression_id=str(index),
        user_id=index % 7,
        item_id=index % 5,
        ts=ts,
        ready_ts=ts + WAIT_MS,
        labels=Labels(click=1, conversion_value=2.0 if converted else None),
        context=Context([]),
        weight=weight,
    )


def late(of: Sample, ts: int, weight: float = 1.0) -> Sample:
    labels = Labels(conversion_value=3.0)
    return msgspec.structs.replace(
        of, kind="correction", sample_id=f"{of.impression_id}:late", ready_ts=ts, labels=labels, context=Context([]), weight=weight
    )


def shown(rows: Sequence[Sample], seed: int) -> Shown:
    generator = torch.Generator().manual_seed(seed)
    summary, log_prob = torch.randn(len(rows), D_MODEL, generator=generator), -torch.rand(len(rows), len(CODES), generator=generator)
    codes = torch.stack([torch.randint(size, (len(rows),), generator=generator) for size in CODES], 1)
    return Shown(rows, summary, log_prob, codes)


def conversions(mode: Mode, pending: int = 64) -> Conversions:
    found = Conversions(ConversionConfig(mode, ATTRIBUTION_MS, pending), D_MODEL, CODES, seed=3)
    with torch.no_grad():
        found.head.out.weight.normal_(generator=torch.Generator().manual_seed(4))
    return found


def importance(mode: str, label: int, p: float, q: float) -> float:
    """p(y) / q(y), written out again from the papers."""
    if mode == "wait":
        return 1.0
    if mode == "fnw":
        return 1 + p if label else (1 - p) * (1 + p)
    if mode == "es_dfm":
        return 1 + q if label else (1 - p) * (1 + q) / (1 - p + q)
    q = min(q, p)
    return p / (p - q / 2) if label else (1 - p) / (1 - p + q / 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_has_the_gradient_of_the_weighted_labels(mode: Mode) -> None:
    early = [False, True, False, False]
    old = [initial(index, 0, converted, weight=1.0 + index) for index, converted in enumerate(early)]
    new = [initial(4, 30_000), initial(5, 30_000, True, weight=0.5)]
    changed = [late(old[2], 5_000, weight=3.0), late(old[1], 6_000)]  # the second had converted before
    said, seen = shown(old, 1), shown(new, 2)
    target = conversions(mode)
    target.step(said, [], WAIT_MS)
    head = copy.deepcopy(target.head).double()
    target.step(seen, changed, 31_000)

    of_old, of_new = [*range(4)], [4, 5]
    first = {place: int(row.labels.conversion_value is not None) for place, row in zip(of_new, new, strict=True)}
    final = {0: 0, 1: 1, 2: 1, 3: 0}
    worth = [1.0, 2.0, 3.0, 4.0, 1.0, 0.5]
    once = [(place, first[place], worth[place]) for place in of_new]
    again = [(2, 1, 3.0)]
    over = [(place, final[place], worth[place]) for place in of_old]
    negatives = [(place, 0, worth[place]) for place in of_new]
    learned = {"wait": over, "fnw": [*negatives, (5, 1, 0.5), *again], "es_dfm": once + again, "defer": once + over}[mode]
    inputs = [torch.cat(pair).double() for pair in ((said.summary, seen.summary), (said.log_prob, seen.log_prob))]
    logits = head(*inputs, torch.cat([said.codes, seen.codes]))

    def mean(column: int, rows: list[tuple[int, int, float]], of: str) -> torch.Tensor:
        terms = []
        for place, label, weight in rows:
            p, late_rate = (torch.sigmoid(logits[place, index]).item() for index in (column, 1))
            entropy = functional.binary_cross_entropy_with_logits(logits[place, column], torch.tensor(float(label), dtype=torch.float64))
            terms.append(weight * importance(of, label, p, late_rate) * entropy)
        return torch.stack(terms).mean()

    loss = mean(0, learned, mode)
    if mode in ("es_dfm", "defer"):
        loss = loss + mean(1, negatives + again, "fnw")
    loss.backward()
    for (name, found), expected in zip(target.head.named_parameters(), head.parameters(), strict=True):
        assert found.grad is not None and expected.grad is not None
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


FEATURES_SEED, PEOPLE, BATCH = 11, 24_000, 64
TRUE = {False: 0.1, True: 0.4}
LATE_SHARE = 0.6


def stream() -> tuple[list[tuple[int, bool, Sample]], list[bool]]:
    """Samples in the order of their readiness, and the group of each impression; a conversion is late by 5 s in the mean."""
    rng = np.random.default_rng(FEATURES_SEED)
    groups, found = [], []
    for index in range(PEOPLE):
        group = bool(rng.random() < 0.5)
        converts, later = rng.random() < TRUE[group], rng.random() < LATE_SHARE
        row = initial(index, index * 10, bool(converts and not later))
        groups.append(group)
        found.append((index, False, row))
        if converts and later:
            found.append((index, True, late(row, row.ready_ts + int(min(rng.exponential(5_000), ATTRIBUTION_MS - 1)))))
    return sorted(found, key=lambda each: (each[2].ready_ts, each[1])), groups


def rates(mode: Mode, with_corrections: bool) -> dict[bool, float]:
    """What the head says of each group at the end: true rates are `TRUE`."""
    arriving, groups = stream()
    target = Conversions(ConversionConfig(mode, ATTRIBUTION_MS), D_MODEL, CODES, seed=3)

    def states(of: Sequence[bool]) -> torch.Tensor:
        return functional.pad(torch.tensor(of).float().unsqueeze(1) * 2 - 1, (0, D_MODEL - 1))

    for start in range(0, len(arriving), BATCH):
        batch = arriving[start : start + BATCH]
        places = [place for place, corrects, _ in batch if not corrects]
        rows = [row for _, corrects, row in batch if not corrects]
        size = len(rows)
        seen = Shown(
            rows, states([groups[place] for place in places]), torch.zeros(size, len(CODES)), torch.zeros(size, 2, dtype=torch.int64)
        )
        corrections = [row for _, corrects, row in batch if corrects and with_corrections]
        target.step(seen if size else None, corrections, max(row.ready_ts for _, _, row in batch))
    inputs = torch.cat([states([False, True]), torch.zeros(2, len(CODES))], 1)
    said = torch.sigmoid(target.logits(inputs, torch.zeros(2, dtype=torch.int64))[:, 0]).tolist()
    return {False: said[0], True: said[1]}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_nearer_to_the_true_rates_than_labels_of_the_window_alone(mode: Mode) -> None:
    plain, found = rates("es_dfm", False), rates(mode, True)
    for group, true in TRUE.items():
        assert abs(plain[group] / true - 1) > 0.4  # most conversions come later
        assert abs(found[group] / true - 1) < 0.2, (mode, group, found)


def learner(mode: Mode | None) -> OnlineLearner:
    conversion = None if mode is None else ConversionConfig(mode, ATTRIBUTION_MS, pending=48)
    config = LearnerConfig(window=100, beam=6, recall_share=0.2, conversion=conversion)
    return OnlineLearner(Grm(small_config()), small_world().vocabulary, config)


def samples(world: SmallWorld, count: int) -> list[Sample]:
    """Every third impression converts, every other one of these late; impressions are a second apart."""
    found: list[Sample] = []
    for index, row in enumerate(world.samples(count)):
        row = msgspec.structs.replace(row, ready_ts=row.ts + WAIT_MS)
        if index % 6 == 0:
            row = msgspec.structs.replace(row, labels=msgspec.structs.replace(row.labels, conversion_value=1.0))
        found.append(row)
        if index % 6 == 3:
            found.append(late(row, row.ts + 5_500))
    return sorted(found, key=lambda row: row.ready_ts)


def feed(target: OnlineLearner, rows: Sequence[Sample]) -> None:
    for start in range(0, len(rows), 32):
        target.step(rows[start : start + 32])


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_continues_bit_for_bit(world: SmallWorld, mode: Mode, tmp_path: Path) -> None:
    rows = samples(world, 192)
    unbroken, first, second = learner(mode), learner(mode), learner(mode)
    feed(unbroken, rows)
    feed(first, rows[:96])
    Checkpoints(tmp_path).save(Checkpoint(first.state(), {}, {}))
    feed(first, rows[96:128])  # what a killed trainer did after its checkpoint
    found = Checkpoints(tmp_path).load({})
    assert found is not None
    second.restore(found.state)
    feed(second, rows[96:])
    before = learner(mode).state().tensors
    assert not torch.equal(before["conversion.out.bias"], unbroken.state().tensors["conversion.out.bias"])
    assert same(unbroken.state().tensors, second.state().tensors)
    assert unbroken.state().facts == second.state().facts


def test_conversions_change_nothing_else_of_the_learner(world: SmallWorld) -> None:
    rows = samples(world, 96)
    with_them, without = learner("es_dfm"), learner(None)
    feed(with_them, rows)
    feed(without, rows)
    state, plain = with_them.state(), without.state()
    added = {name for name in state.tensors if name.partition(".")[0] in ("conversion", "conversion_adam", "pending")}
    assert added
    assert same({name: tensor for name, tensor in state.tensors.items() if name not in added}, plain.tensors)
    assert plain.facts.keys() == {"counters", "floors", "metrics", "generated"}
    assert without.config.to_json().keys() == {"fit", "chunk", "recall_share", "beam", "window", "half_life", "rate_rows"}
    assert with_them.config.to_json()["conversion"]["mode"] == "es_dfm"


def test_the_checkpoint_of_a_learner_without_conversions_is_refused_by_one_with_them(world: SmallWorld) -> None:
    with pytest.raises(ValueError, match="another model"):
        learner("wait").restore(learner(None).state())


def test_a_prediction_is_recorded_with_the_final_label(world: SmallWorld) -> None:
    target = learner("es_dfm")
    rows = samples(world, 40)
    feed(target, rows)
    kept = target.metrics.open.predictions["conversion"]
    last_ts = max(row.ready_ts for row in rows)
    over = [row for row in rows if row.kind == "initial" and row.ready_ts + ATTRIBUTION_MS <= last_ts]
    expected = [(row.user_id, int(int(row.impression_id) % 3 == 0)) for row in over]
    assert len(expected) > 10
    assert sorted(zip(kept["user"], kept["outcome"], strict=True)) == sorted(expected)
    assert target.metrics.open.summary()["calibration"]["conversion"] == pytest.approx(sum(kept["probability"]) / sum(kept["outcome"]))


def test_a_conversion_of_no_value_is_one_and_a_like_is_none() -> None:
    target, row = conversions("es_dfm"), initial(0, 0)
    target.step(shown([row], 1), [], WAIT_MS)
    target.step(None, [msgspec.structs.replace(late(row, 2_000), labels=Labels(like=1))], 2_000)
    assert not target.pending.columns["converted"][0]
    target.step(None, [msgspec.structs.replace(late(row, 3_000), labels=Labels(conversion_value=0.0))], 3_000)
    assert target.pending.columns["converted"][0]


def test_weights_that_broke_teach_the_head_nothing() -> None:
    target = conversions("fnw")
    before = {name: tensor.clone() for name, tensor in target.head.state_dict().items()}
    rows = [initial(0, 0), initial(1, 0)]
    broken = shown(rows, 1)
    broken.summary[0] = math.nan
    target.step(broken, [], WAIT_MS)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.head.state_dict().items())


def column(impressions: Sequence[int], due: Sequence[int]) -> dict[str, Any]:
    count = len(impressions)
    columns = Pending(1, 2).columns
    rows = {name: np.zeros((count, *of.shape[1:]), of.dtype) for name, of in columns.items()}
    return rows | {"impression": np.array(impressions), "due_ts": np.array(due)}


def test_what_finds_no_room_is_forgotten_oldest_first() -> None:
    pending = Pending(3, 2)
    pending.add(column([7, 8, 9, 10], [100, 110, 120, 130]))
    assert (len(pending), pending.forgotten) == (3, 1)
    assert pending.convert([7, 9, 9]) == ([2], [1])
    assert pending.columns["impression"][pending.end(119)].tolist() == [8]
    pending.add(column([11], [140]))
    assert pending.state()["impression"].tolist() == [9, 10, 11]
    assert pending.columns["impression"][pending.end(1_000)].tolist() == [9, 10, 11]
    assert len(pending) == 0


def test_a_restored_store_is_the_store() -> None:
    one, two = Pending(3, 2), Pending(3, 2)
    one.add(column([1, 2, 3, 4], [10, 20, 30, 40]))
    one.convert([3])
    two.restore(one.state())
    assert same(one.state(), two.state())
    assert two.convert([3, 4])[1] == [1]
    with pytest.raises(ValueError, match="pending is 0"):
        Pending(0, 2)


def test_nothing_at_all_is_no_step() -> None:
    assert conversions("wait").step(None, [], 5) == Ended([], [], [])
