"""Which code follows a prefix, whoever asks: an n-gram prior on SIDs, learned online beside the decoder and added to its logits.

How popular an SID is changes by the hour, and a decoder needs many steps to learn thousands of conditional frequencies. A row per
(level, prefix), hashed into one table, learns them one by one: row-wise Adagrad gives a fresh prefix a large step and a well-known one a
small one. The decoder is left with what depends on the user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from kernels.prior import PrefixTable, prefix_logits, prefix_row
from model.grm.presets import GrmConfig


class PrefixPrior(nn.Module):
    """Prefix → `d_prefix` numbers → logits of the next code."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.rows = config.prefix_rows
        table = EmbeddingBagConfig(name="prefix", num_embeddings=self.rows, embedding_dim=config.d_prefix, feature_names=["prefix"])
        self.tables = FusedEmbeddingBagCollection(
            [table], optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": config.prefix_lr, "eps": 1e-8}, device=device
        )
        self.spread = nn.ModuleList(nn.Linear(config.d_prefix, size, bias=False, device=device) for size in config.codes)

    def reset_parameters(self) -> None:
        """Nothing is known; where a row is as wide as the codebook, each of its numbers is the logit of one code."""
        nn.init.zeros_(self.tables.embedding_bags["prefix"].weight)  # type: ignore[union-attr, arg-type]
        for spread in self.spread:
            weight: Tensor = spread.weight  # type: ignore[assignment]
            size, rank = weight.shape
            if rank == size:
                nn.init.eye_(weight)
            else:
                nn.init.normal_(weight, std=rank**-0.5)

    def forward(self, targets: Tensor) -> list[Tensor]:
        """Logits of every level along int64[B, L], float[B, codes] each."""
        batch, levels = targets.shape
        found = self._read(self.rows_of(targets)).view(batch, levels, -1)
        return [spread(found[:, level]) for level, spread in enumerate(self.spread)]

    def next(self, codes: Tensor) -> Tensor:
        """Logits float[B, W, codes] that follow int64[B, W, level], read only."""
        whole = self.whole()
        if whole is not None:
            return prefix_logits(whole, codes)
        rows = prefix_row(codes, self.rows)
        return self.spread[codes.shape[-1]](self._read(rows.flatten()).view(*rows.shape, -1))

    def whole(self) -> PrefixTable | None:
        """Table and weights, the storage itself; None where the table is spread over processes."""
        if not hasattr(self.tables, "embedding_bags"):
            return None
        table: Tensor = self.tables.embedding_bags["prefix"].weight  # type: ignore[union-attr, assignment]
        return PrefixTable(table, [spread.weight for spread in self.spread])  # type: ignore[misc]

    def _read(self, rows: Tensor) -> Tensor:
        """float[n, d_prefix] of rows int64[n]."""
        lengths = torch.ones(len(rows), dtype=torch.int32, device=rows.device)
        return self.tables(KeyedJaggedTensor(["prefix"], rows, lengths=lengths)).values()

    def rows_of(self, targets: Tensor) -> Tensor:
        """Rows int64[B * L] of all prefixes of int64[B, L]."""
        return torch.stack([prefix_row(targets[:, :level], self.rows) for level in range(targets.shape[1])], 1).reshape(-1)
