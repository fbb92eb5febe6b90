"""Tables without collisions: an id gets a row of its own, and loses it to an id that is met more often or more lately.

TorchRec's managed-collision module decides who is admitted and who is evicted (counts over the distance to the last use). Used without its
sharding it leaves an evicted row as it is, so that a newcomer would start with a stranger's embedding and optimizer state: `Grm.admit`
resets both. Which id owns which row is a table like any other (`ids`: int64[rows]), published by the rows that changed; serving looks up
and never admits.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

FREE: Final = torch.iinfo(torch.int64).max
_PIECE: Final = 1 << 16  # ids admitted at a time; the module's buffer is of fixed size and would drop more


class IdMap(nn.Module):
    """Which row of a table an id owns.

    The last row belongs to everybody who has none. Every admission sorts the map: O(rows log rows).
    """

    def __init__(self, rows: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.rows = rows
        place = device or torch.device("cpu")
        self._collisions = MCHManagedCollisionModule(rows, place, DistanceLFU_EvictionPolicy(), eviction_interval=1)
        self._collisions._init_history_buffers({"ids": _jagged(torch.zeros(_PIECE, dtype=torch.int64, device=place))})
        self.ids: Tensor
        self.register_buffer("ids", torch.full((rows,), FREE, dtype=torch.int64, device=device))

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows int64[n] of ids int64[n] ≥ 0; the last row where an id has none."""
        return self._collisions.remap({"ids": _jagged(ids)})["ids"].values()

    @torch.no_grad()
    def admit(self, ids: Tensor) -> Tensor:
        """Count these ids as met, give rows to those that deserve one; returns the rows with a new owner, int64[n], ascending.

        Raises:
            ValueError: an id is negative or the largest int64; the message names its place.
        """
        bad = ((ids < 0) | (ids == FREE)).nonzero()
        if len(bad):
            raise ValueError(f"id {int(bad[0])} of the batch is {int(ids[bad[0]])}: expected 0 ≤ id < 2^63 - 1")
        changed = []
        for piece in ids.split(_PIECE):
            # The module counts its steps apart from its state; made to read the state, a restored map goes on as the saved one would.
            self._collisions._current_iter = -1
            self._collisions.profile({"ids": _jagged(piece)})
            evicted = self._collisions.evict()
            assert evicted is not None
            changed.append(evicted)
        rows = torch.unique(torch.cat(changed)) if changed else ids.new_zeros(0)
        before = self.ids[rows]
        self.ids[self._collisions._mch_remapped_ids_mapping] = self._collisions._mch_sorted_raw_ids
        return rows[self.ids[rows] != before]

    @torch.no_grad()
    def reindex(self) -> None:
        """Look up by what `ids` holds now, after it was loaded from a published version; use counts start anew."""
        order = torch.argsort(self.ids, stable=True)
        last = self.rows - 1
        order = torch.cat([order[order != last], order.new_tensor([last])])  # the shared row stays the shared row
        self._collisions._mch_remapped_ids_mapping.copy_(order)
        self._collisions._mch_sorted_raw_ids.copy_(self.ids[order])


def _jagged(values: Tensor) -> JaggedTensor:
    return JaggedTensor(values, lengths=torch.ones(len(values), dtype=torch.int32, device=values.device))
