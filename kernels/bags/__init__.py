"""Embeddings of the bags of several features, looked up and summed in one call on a CPU; nothing of it is learned from.

Training, a GPU, and tables that are spread over processes ask TorchRec's collections, whose calls take longer than a short look-up itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import native
from kernels.bags import reference


class _Bags(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("features", "bags", "width")),
        *((name, ctypes.c_void_p) for name in ("tables", "rows", "values", "lengths")),
        ("count", ctypes.c_long),
        ("out", ctypes.c_void_p),
    ]  # as `Bags` of native/bags.c


def fits(tables: Sequence[Tensor]) -> bool:
    """Whether `pooled` can read these: rows of float32, of one width, on a CPU with the compiled library; and nobody traces."""
    width = tables[0].shape[1]
    plain = all(
        table.dtype == torch.float32 and table.device.type == "cpu" and table.shape[1] == width and table.is_contiguous()
        for table in tables
    )
    return plain and not torch.compiler.is_compiling() and native.library() is not None


def pooled(tables: Sequence[Tensor], values: Tensor, lengths: Tensor) -> Tensor:
    """Sums of rows, without gradients; an empty bag is 0.

    Args:
        tables: float32[rows, d] of each of F features; see `fits`.
        values: int64[N], rows: feature by feature, bag by bag.
        lengths: int[F * T] of each bag.

    Returns:
        float32[T, F * d].

    Raises:
        ValueError: lengths that do not add up, or a value that its table has no row for.
    """
    lib = native.library()
    assert lib is not None
    bags, width = len(lengths) // len(tables), tables[0].shape[1]
    values, lengths = values.long().contiguous(), lengths.int().contiguous()
    if len(lengths) != bags * len(tables):
        raise ValueError(f"{len(lengths)} bags of {len(tables)} features: as many of each are expected")
    out = native.floats(bags, len(tables) * width)
    at = (ctypes.c_void_p * len(tables))(*(table.data_ptr() for table in tables))
    rows = (ctypes.c_long * len(tables))(*map(len, tables))
    asked = _Bags(
        len(tables), bags, width, ctypes.addressof(at), ctypes.addressof(rows), values.data_ptr(), lengths.data_ptr(), len(values),
        out.data_ptr(),
    )  # fmt: skip
    wrong = lib.pool(ctypes.byref(asked))
    if wrong >= 0:
        told = f"value {wrong} of {len(values)}, in bags of {int(lengths.sum())}"
        raise ValueError(f"{told}, is no row of its table, is missing or is left over: {values[wrong : wrong + 1].tolist()}")
    return out


__all__ = ["fits", "pooled", "reference"]
