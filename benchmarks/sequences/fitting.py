"""Epochs over sequences, the same for SASRec and the GRM: warm-up, a falling rate, the best epoch by validation, resumption."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.sequences.causal import BATCH, batches
from model.grm.fit import restore_slots, slots
from model.online.checkpoint import Checkpoint, Checkpoints
from model.online.step import LearnerState

WARMUP = 100
FINAL_RATE = 0.03
CLIP = 5.0
COUNT_RATE = 10.0
"""Rate of the few weights that say what counts are worth, as a multiple of the others'."""


class Trainable(Protocol):
    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of (inputs, targets) int64[B, S], 0 = none."""
        ...

    def count_weights(self) -> list[torch.nn.Parameter]: ...


@dataclass(frozen=True)
class Schedule:
    lr: float
    weight_decay: float
    epochs: int
    patience: int


@dataclass(frozen=True)
class Fitted:
    """`epoch` is the one whose weights the model has; `validation` what was measured then.

    `seconds` are those of a mean epoch's training, `earlier` those that runs before this one took until their last checkpoint.
    """

    epoch: int
    validation: dict[str, float]
    seconds: float
    earlier: float


def fit(
    model: Any,
    pieces: Sequence[Sequence[int]],
    schedule: Schedule,
    measure: Callable[[], dict[str, float]] | None,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    said: Callable[[str], None],
    stop: int | None = None,
) -> Fitted:
    """Train, and leave the model with the weights of its best epoch.

    Args:
        model: an nn.Module that is `Trainable`.
        measure: metrics on validation targets after every epoch, of which `n10` chooses; None = the last epoch is taken.
        folder: where every epoch is kept; the same call goes on from there.
        stop: epochs to run of those that the schedule is made for; all where it is None.
    """
    apart = {id(parameter) for parameter in model.count_weights()}
    groups = [
        {"params": [parameter for parameter in model.parameters() if id(parameter) not in apart], "weight_decay": schedule.weight_decay},
        {"params": model.count_weights(), "weight_decay": 0.0},
    ]
    rates = (schedule.lr, schedule.lr * COUNT_RATE)
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], schedule.lr, (0.9, 0.98), fused=True)
    steps = -(-len(pieces) // BATCH)
    checkpoints = Checkpoints(folder)
    best, best_epoch, first, spent, earlier = {"n10": -1.0}, 0, 1, 0.0, 0.0
    started = time.perf_counter()
    kept: dict[str, Tensor] = {}
    if (found := checkpoints.load(identity)) is not None:
        tensors, facts = found.state.tensors, found.state.facts
        model.load_state_dict(_under("model.", tensors))
        restore_slots(optimizer, "adam", tensors)
        kept = _under("best.", tensors)
        best, best_epoch, first, spent = facts["best"], facts["best_epoch"], facts["epoch"] + 1, facts["spent"]
        earlier = facts["elapsed"]
        said(f"resumed after epoch {facts['epoch']}")
    last = schedule.epochs if stop is None else stop
    for epoch in range(first, last + 1):
        if measure is not None and epoch - 1 - best_epoch >= schedule.patience:
            break
        torch.manual_seed(seed * 1000 + epoch)  # an epoch that is begun again draws the same dropout
        model.train()
        began, losses = time.perf_counter(), []
        for step, (inputs, targets) in enumerate(batches(pieces, np.random.default_rng((seed, epoch)))):
            done = (epoch - 1) * steps + step
            share = min(1.0, (done + 1) / WARMUP) * max(FINAL_RATE, 1 - done / (schedule.epochs * steps))
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * share
            loss = model.loss(inputs, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses.append(loss.item())
        spent += time.perf_counter() - began
        line = f"epoch {epoch:3} of at most {last}  loss {np.mean(losses):.3f}  {time.perf_counter() - began:.0f} s"
        if measure is not None:
            model.eval()
            measured = measure()
            line += f"  validation R@10 {measured['r10']:.4f} N@10 {measured['n10']:.4f}"
            if measured["n10"] > best["n10"]:
                best, best_epoch = measured, epoch
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        said(line)
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | slots(optimizer, "adam")
        tensors |= {f"best.{name}": tensor for name, tensor in kept.items()}
        state = {"best": best, "best_epoch": best_epoch, "epoch": epoch, "spent": spent}
        state["elapsed"] = earlier + time.perf_counter() - started
        checkpoints.save(Checkpoint(LearnerState(tensors, state), {}, identity))
        first = epoch + 1
    if kept:
        model.load_state_dict(kept)
    model.eval()
    return Fitted(best_epoch if kept else last, best, spent / (first - 1), earlier)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
