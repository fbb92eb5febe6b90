"""Floors: the time that arithmetic and memory alone would take at the measured ceilings of the device.

A floor counts the products that the result needs, and every weight and every shared tensor read once; activations, launches and selection
are counted as free. A level costs one decoder row per beam that enters it: 1 for the first level, then the width of the level before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.grm.presets import GrmConfig


@dataclass(frozen=True)
class Ceilings:
    """flops: multiply-adds count two, per second. bandwidth: bytes read plus bytes written, per second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """What a piece needs at least: floating-point operations of its products, and bytes of main memory."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def floor_us(self, ceilings: Ceilings) -> float:
        """Microseconds: arithmetic and memory overlap perfectly."""
        return 1e6 * max(self.flops / ceilings.flops, self.bytes / ceilings.bandwidth)


def layer_weights(config: GrmConfig) -> int:
    """Weights of one decoder layer: self-attention Q, K, V, O; lazy cross-attention Q, O; two feed-forward products."""
    d = config.d_model
    return d * (d + 2 * config.self_groups * config.d_head) + 3 * d * d + 2 * d * config.ffn


def level(config: GrmConfig, rows: int, batch: int, context: int, codes: int, itemsize: int) -> Work:
    """One level with `rows` beams in each of `batch` requests."""
    total = batch * rows
    linear = 2.0 * total * layer_weights(config) * config.layers
    cross = 4.0 * total * context * config.d_model * config.layers
    vocabulary = 2.0 * total * config.d_model * codes
    weights = (layer_weights(config) * config.layers + config.d_model * codes) * itemsize
    return Work(linear + cross + vocabulary, weights + batch * context * config.d_context * itemsize)


def search(config: GrmConfig, batch: int, widths: Sequence[int], context: int, itemsize: int) -> tuple[Work, ...]:
    """Each level of a whole search. The last width costs no decoder row."""
    rows = (1, *widths[:-1])
    return tuple(level(config, row, batch, context, codes, itemsize) for row, codes in zip(rows, config.codes, strict=True))


def search_us(config: GrmConfig, batch: int, widths: Sequence[int], context: int, itemsize: int, ceilings: Ceilings) -> float:
    """Levels depend on each other, so their floors add up."""
    return sum(work.floor_us(ceilings) for work in search(config, batch, widths, context, itemsize))
