"""What a sample is worth as a target, and which part of that was already learned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

# What each label adds to the weight of its impression's SID. A long view is the common currency; rare and deliberate acts count as much
# or more. A label that says "less of this" adds nothing and takes everything away.
VALUES: Final[dict[str, float]] = {
    "click": 0.5,
    "long_view": 1.0,
    "like": 1.0,
    "follow": 1.0,
    "comment": 0.5,
    "share": 1.0,
    "conversion_value": 2.0,
}
_BIT: Final = {name: 1 << index for index, name in enumerate(VALUES)}
_VETO: Final = 1 << len(VALUES)


def positive_labels(labels: Any, satisfied: bool | None = None) -> int:
    """The labels that are there, as bits; `satisfied` takes the place of the label `long_view` where it is known."""
    bits = 0
    for name, bit in _BIT.items():
        count = getattr(labels, name, None) if satisfied is None or name != "long_view" else satisfied
        if count is not None and count > 0:
            bits |= bit
    return bits | (_VETO if (getattr(labels, "hate", None) or 0) > 0 else 0)


def value(bits: int) -> float:
    """Weight of a target with these labels; 0 = not a target."""
    return 0.0 if bits & _VETO else sum(VALUES[name] for name, bit in _BIT.items() if bits & bit)


def advantage(bits: int) -> float:
    """What a policy gradient is told of a target with these labels: 1 = satisfying, -1 = unwanted, 0 = neither."""
    return -1.0 if bits & _VETO else float(bits & _BIT["long_view"] > 0)


def digest(impression_id: str) -> int:
    """The 64 bits, as an int64, by which an impression is remembered."""
    return int.from_bytes(hashlib.blake2b(impression_id.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class Worth:
    """What a sample is worth.

    Attributes:
        weight: to learn with now.
        duplicate: an initial sample seen before.
        advantage: of an initial sample, times its own weight.
        value: what the labels add, without the sample's own weight; None = no label is known yet.
    """

    weight: float
    duplicate: bool = False
    advantage: float = 0.0
    value: float | None = None


class Ledger:
    """Which labels of which impression were learned: no target is trained on twice, a correction adds only what its initial had not.

    Remembers the latest `capacity` impressions by a 64-bit digest of their id. An impression forgotten meanwhile counts as one without
    labels, so its correction adds its full value.
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self.capacity = capacity
        self._learned: dict[int, int] = {}

    def knows(self, impression_id: str) -> bool:
        """Whether a sample of the impression was admitted."""
        return digest(impression_id) in self._learned

    def admit(self, kind: str, impression_id: str, labels: Any, weight: float, satisfied: bool | None = None) -> Worth:
        """Decide what to learn from a sample, and remember it; `satisfied`: see `positive_labels`.

        Raises:
            ValueError: the weight is negative or not a number.
        """
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight is {weight}: expected a number ≥ 0")
        key = digest(impression_id)
        before = self._learned.get(key)
        bits = positive_labels(labels, satisfied)
        if kind == "initial":
            if before is not None:
                return Worth(0.0, duplicate=True)
            self._remember(key, bits)
            told = bits > 0 or getattr(labels, "long_view", None) is not None
            return Worth(weight * value(bits), advantage=weight * advantage(bits), value=value(bits) if told else None)
        known = before or 0
        self._remember(key, known | bits)
        gain = max(0.0, value(known | bits) - value(known))
        return Worth(weight * gain, value=gain)

    def _remember(self, key: int, bits: int) -> None:
        self._learned[key] = bits
        if len(self._learned) > self.capacity:
            del self._learned[next(iter(self._learned))]

    def state(self) -> dict[str, torch.Tensor]:
        """`impression`: int64[n] digests, oldest first; `labels`: int16[n] bits."""
        keys = np.fromiter(self._learned.keys(), np.int64, len(self._learned))
        bits = np.fromiter(self._learned.values(), np.int16, len(self._learned))
        return {"impression": torch.from_numpy(keys), "labels": torch.from_numpy(bits)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._learned = dict(zip(state["impression"].tolist(), state["labels"].tolist(), strict=True))
