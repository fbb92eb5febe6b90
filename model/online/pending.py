"""Impressions that may still convert: what the model said of each when it was shown, kept until its attribution window ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.int64]


class Pending:
    """At most `capacity` impressions in the order of their arrival, as columns in a ring; one that has no room any more is forgotten.

    Attributes:
        forgotten: impressions that had to leave before their window ended; what became of them is never learned.
    """

    def __init__(self, capacity: int, width: int) -> None:
        """
        Args:
            width: numbers that the model said of an impression.

        Raises:
            ValueError: there is room for none.
        """
        if capacity < 1:
            raise ValueError(f"pending is {capacity}: expected room for at least one impression")
        self.capacity = capacity
        self.forgotten = 0
        # Memory that is not written to is not taken from the machine.
        self.columns: dict[str, NDArray[Any]] = {
            "impression": np.empty(capacity, np.int64),
            "due_ts": np.empty(capacity, np.int64),
            "user": np.empty(capacity, np.int64),
            "code": np.empty(capacity, np.int64),
            "worth": np.empty(capacity, np.float32),
            "said": np.empty(capacity, np.float32),
            "converted": np.empty(capacity, np.bool_),
            "inputs": np.empty((capacity, width), np.float32),
        }
        self._first = self._next = 0  # how many left and came; the remainder by the capacity is the place
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return self._next - self._first

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Remember n impressions: one array[n] per column, `inputs` [n, width]."""
        for row in range(len(rows["impression"])):
            if len(self) == self.capacity:
                self._leave(self._first % self.capacity)
                self.forgotten += 1
            place = self._next % self.capacity
            for name, column in self.columns.items():
                column[place] = rows[name][row]
            self._place[int(rows["impression"][row])] = place
            self._next += 1

    def convert(self, impressions: Sequence[int]) -> tuple[Places, list[int]]:
        """Note conversions: the places of those that are remembered and had not converted, and which of the given ones they are."""
        places, given = [], []
        for index, impression in enumerate(impressions):
            place = self._place.get(impression)
            if place is not None and not self.columns["converted"][place]:
                self.columns["converted"][place] = True
                places.append(place)
                given.append(index)
        return np.array(places, np.int64), given

    def end(self, now_ts: int) -> Places:
        """Let go of those whose window has ended, oldest first. Their places hold them until the next `add`."""
        ended = []
        while len(self) and self.columns["due_ts"][self._first % self.capacity] <= now_ts:
            place = self._first % self.capacity
            self._leave(place)
            ended.append(place)
        return np.array(ended, np.int64)

    def _leave(self, place: int) -> None:
        impression = int(self.columns["impression"][place])
        if self._place.get(impression) == place:
            del self._place[impression]
        self._first += 1

    def state(self) -> dict[str, Tensor]:
        """Copies of the columns, oldest first."""
        order = np.arange(self._first, self._next) % self.capacity
        return {name: torch.from_numpy(column[order]) for name, column in self.columns.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state` of a store with as much room."""
        self._first, self._next, self._place = 0, 0, {}
        self.add({name: tensor.numpy() for name, tensor in state.items()})
