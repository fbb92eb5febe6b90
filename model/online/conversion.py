"""Whether an impression converts: a head that learns from labels that come days later, as a delayed-feedback mode says.

Like the engagement head it reads the model's states without a gradient into them. It remembers the states of every impression until the
attribution window ends, since what comes later brings none, and then records what it had said beside what became of it: calibration and
AUC of conversions are those of final labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.grm.fit import restore_slots, slots
from model.online.delay import Arrivals, Mode, delayed_loss, ingested
from model.online.engagement import EngagementHead
from model.online.pending import Pending
from model.online.value import digest

RARE = -3.0
"""Logit that the head begins with: an impression seldom converts, and a rate near one half would take long to fall."""


@dataclass(frozen=True)
class ConversionConfig:
    """How conversions are learned.

    Attributes:
        attribution_ms: how long after its sample was ready an impression may convert.
        pending: impressions that are remembered for so long.
    """

    mode: Mode
    attribution_ms: int
    pending: int = 50_000


@dataclass(frozen=True)
class Shown:
    """Initial samples as they were scored: B rows, see `model.grm.model.Scores`; `codes`: int64[B, L]."""

    rows: Sequence[Any]
    summary: Tensor
    log_prob: Tensor
    codes: Tensor


@dataclass(frozen=True)
class Ended:
    """Impressions whose attribution window is over: what was said when they were shown, what became of them, and whose they were."""

    said: list[float]
    converted: list[int]
    users: list[int]


class Conversions:
    """p(converts) of an impression, and p(converts after the label window), which ES-DFM and DEFER weigh labels by.

    The second is a label that comes late itself, always a negative at first; fake-negative weights find it.
    """

    def __init__(self, config: ConversionConfig, d_model: int, codes: tuple[int, ...], seed: int) -> None:
        self.config = config
        self.head = EngagementHead(d_model, codes, seed, labels=2)
        nn.init.constant_(self.head.out.bias, RARE)
        self.pending = Pending(config.pending, d_model + len(codes))
        self.now_ts = 0
        self._split = [d_model, len(codes)]
        self._optimizer = torch.optim.Adam(self.head.parameters(), lr=1e-3, fused=True)

    def step(self, shown: Shown | None, corrections: Sequence[Any], now_ts: int) -> Ended:
        """Predict what was shown, note what converted, and learn what the mode ingests of both and of what ended.

        Args:
            corrections: samples that are corrections, of any label.
            now_ts: event time that the samples have reached, ms.
        """
        self.now_ts = max(self.now_ts, now_ts)
        columns = self.pending.columns
        first = self._shown(shown)
        self.pending.add(first)
        late = [row for row in corrections if _converted(row)]
        places, given = self.pending.convert([digest(row.impression_id) for row in late])
        later = {name: column[places] for name, column in columns.items()}
        later["worth"] = np.array([late[index].weight for index in given], np.float32)
        last_places = self.pending.end(self.now_ts)
        last = {name: column[last_places] for name, column in columns.items()}
        self._learn(first, later, last)
        return Ended(last["said"].tolist(), last["converted"].astype(int).tolist(), last["user"].tolist())

    def logits(self, inputs: Tensor, code: Tensor) -> Tensor:
        """float[B, d_model + L], int64[B] → float[B, 2]: converts, converts late."""
        summary, log_prob = inputs.split(self._split, 1)
        found: Tensor = self.head(summary, log_prob, code.unsqueeze(1))
        return found

    def state(self) -> dict[str, Tensor]:
        """Weights, optimizer and what is pending, by name."""
        tensors = {f"conversion.{name}": tensor for name, tensor in self.head.state_dict().items()}
        tensors |= slots(self._optimizer, "conversion_adam")
        return tensors | {f"pending.{name}": tensor for name, tensor in self.pending.state().items()}

    def facts(self) -> dict[str, int]:
        return {"now_ts": self.now_ts, "forgotten": self.pending.forgotten}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, int]) -> None:
        """Continue exactly where `state` and `facts` were taken; `tensors` may hold others too.

        Raises:
            KeyError, RuntimeError: they are of a head of another shape.
        """
        parts: dict[str, dict[str, Tensor]] = {"conversion": {}, "pending": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.head.load_state_dict(parts["conversion"])
        restore_slots(self._optimizer, "conversion_adam", tensors)
        self.pending.restore(parts["pending"])
        self.now_ts, self.pending.forgotten = facts["now_ts"], facts["forgotten"]

    def _shown(self, shown: Shown | None) -> dict[str, np.ndarray]:
        if shown is None:
            return {name: column[:0] for name, column in self.pending.columns.items()}
        inputs, code = torch.cat([shown.summary, shown.log_prob], 1), shown.codes[:, -1]
        with torch.no_grad():
            said = torch.sigmoid(self.logits(inputs, code)[:, 0])
        rows = shown.rows
        return {
            "impression": np.array([digest(row.impression_id) for row in rows], np.int64),
            "due_ts": np.array([row.ready_ts + self.config.attribution_ms for row in rows], np.int64),
            "user": np.array([row.user_id for row in rows], np.int64),
            "code": code.numpy(),
            "worth": np.array([row.weight for row in rows], np.float32),
            "said": said.numpy(),
            "converted": np.array([_converted(row) for row in rows], np.bool_),
            "inputs": inputs.numpy(),
        }

    def _learn(self, shown: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray], ended: Mapping[str, np.ndarray]) -> None:
        """One step on what the mode ingests; none where that is nothing or the loss is not finite."""
        parts = (shown, later, ended)
        inputs, code, worth = (torch.from_numpy(np.concatenate([of[name] for of in parts])) for name in ("inputs", "code", "worth"))
        arrivals = Arrivals(*(torch.from_numpy(of["converted"]) for of in parts))
        never = Arrivals(torch.zeros_like(arrivals.shown), arrivals.converted, arrivals.ended[:0])
        learned: list[tuple[int, Mode, Arrivals]] = [(0, self.config.mode, arrivals)]
        if self.config.mode in ("es_dfm", "defer"):
            learned.append((1, "fnw", never))
        loss = torch.zeros(())
        for column, mode, of in learned:
            places, labels = ingested(mode, of)
            if len(places):
                logits = self.logits(inputs[places], code[places])
                late = torch.sigmoid(logits[:, 1])
                loss = loss + delayed_loss(mode, logits[:, column], labels, late, worth[places])
        if not loss.requires_grad:
            return
        if math.isfinite(loss.item()):
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()


def _converted(row: Any) -> bool:
    return row.labels.conversion_value is not None
