"""Sequences in the layout of S3-Rec and ICLRec: one line per user, `user item item …` in order, item ids from 1.

The last item of a user is the test target, the one before it the validation target; what stands before a target is its history. Neither
item ids nor their order are features: these files number items by first appearance, so that neighbours in number are neighbours in time.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

HISTORY = 20
SHORTEST = 4  # two items to train on, one to validate, one to test
ATTRIBUTE_DIMENSIONS = 64


class LayoutError(Exception):
    """A file that is missing or broken; the message says which line and what is expected."""


@dataclass(frozen=True)
class Data:
    """sequences: one list of item ids (1 … items) per user. attributes: float32[items, d], rows of unit length or zero; row = id - 1."""

    name: str
    items: int
    sequences: list[list[int]]
    attributes: Vectors

    @cached_property
    def may_repeat(self) -> bool:
        """Whether somebody meets an item twice in what is trained on; where nobody does, an item of the history is never recommended."""
        return any(len(set(sequence)) < len(sequence) for sequence in self.train())

    def train(self) -> list[list[int]]:
        return [sequence[:-2] for sequence in self.sequences]

    def until_validation(self) -> list[list[int]]:
        return [sequence[:-1] for sequence in self.sequences]

    def validation(self) -> list[tuple[list[int], int]]:
        """(history, target) of every user."""
        return [(sequence[:-2], sequence[-2]) for sequence in self.sequences]

    def test(self) -> list[tuple[list[int], int]]:
        """(history, target) of every user; the history has the validation item."""
        return [(sequence[:-1], sequence[-1]) for sequence in self.sequences]


def load(folder: Path, name: str) -> Data:
    """Read `<name>.txt`, `<name>_item2attributes.json` (both plain or gzip) and, where it exists, `<name>.attr_svd64.npy`.

    Raises:
        LayoutError: a file is missing or a line is not of the layout.
    """
    path, lines = _text(folder, f"{name}.txt")
    sequences = []
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            items = [int(field) for field in line.split()[1:]]
        except ValueError as error:
            raise LayoutError(f"{path}, line {number}: expected whole numbers, `user item item …`: {error}") from error
        if len(items) < SHORTEST or min(items) < 1:
            raise LayoutError(f"{path}, line {number}: expected at least {SHORTEST} items with ids from 1, found {line[:60]!r}")
        sequences.append(items)
    if not sequences:
        raise LayoutError(f"{path}: it has no users")
    count = max(max(sequence) for sequence in sequences)
    ready = folder / f"{name}.attr_svd64.npy"
    attributes = np.load(ready).astype(np.float32) if ready.exists() else _reduced(folder, name, count)
    if len(attributes) != count or not np.isfinite(attributes).all():
        raise LayoutError(f"{ready}: expected {count} finite rows, found an array of shape {attributes.shape}")
    return Data(name, count, sequences, attributes)


def _reduced(folder: Path, name: str, items: int) -> Vectors:
    """Leading left singular vectors, times their values, of the item × attribute matrix with rare attributes weighing more; unit rows."""
    path, text = _text(folder, f"{name}_item2attributes.json")
    owned = {int(item): list(values) for item, values in json.loads(text).items()}
    unknown = [item for item in owned if not 1 <= item <= items]
    if unknown:
        raise LayoutError(f"{path}: item {unknown[0]} is not in {name}.txt, whose ids end at {items}")
    number = {attribute: column for column, attribute in enumerate(sorted({value for values in owned.values() for value in values}))}
    matrix = np.zeros((items, max(1, len(number))), np.float32)
    for item, values in owned.items():
        matrix[item - 1, [number[value] for value in values]] = 1.0
    matrix *= np.log(items / np.maximum(matrix.sum(0), 1.0))
    # Through the small Gram matrix: its eigenvectors are the right singular vectors.
    _, axes = np.linalg.eigh(matrix.T @ matrix)
    reduced = matrix @ axes[:, ::-1][:, :ATTRIBUTE_DIMENSIONS]
    return (reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _text(folder: Path, name: str) -> tuple[Path, str]:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            body = path.read_bytes()
            return path, (gzip.decompress(body) if path.suffix == ".gz" else body).decode()
    raise LayoutError(f"{folder / name}: neither it nor {name}.gz exists")
