"""Context processor: profile and history become one key/value tensor, projected once and shared by every decoder layer and beam."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from model.grm.decoder import Context
from model.grm.groups import COUNT_ROWS
from model.grm.inputs import GAP_ROWS, KINDS, PLAY_ROWS, RANK_ROWS, GrmBatch, feature_names
from model.grm.presets import GrmConfig


def embedding_tables(config: GrmConfig) -> list[EmbeddingBagConfig]:
    """One table per feature, all of width `d_sparse`."""
    rows = {"user": config.user_rows, "item": config.item_rows, "kind": len(KINDS), "play": PLAY_ROWS, "gap": GAP_ROWS, "rank": RANK_ROWS}
    rows |= {f"code_{level}": size for level, size in enumerate(config.codes)}
    rows |= {"count": COUNT_ROWS, "liked": COUNT_ROWS, "author": config.author_rows}
    return [
        EmbeddingBagConfig(name=name, num_embeddings=rows[name], embedding_dim=config.d_sparse, feature_names=[name])
        for name in feature_names(config)
    ]


class ContextProcessor(nn.Module):
    """Sparse features → one token per profile, video or group of videos → `d_context`, normalised.

    The tables learn by themselves: FBGEMM applies row-wise Adagrad inside the backward pass, so no dense gradient of a table ever exists.
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.tables = FusedEmbeddingBagCollection(
            embedding_tables(config),
            optimizer_type=RowWiseAdagrad,
            optimizer_kwargs={"lr": config.sparse_lr, "eps": 1e-8},
            device=device,
        )
        width = len(feature_names(config)) * config.d_sparse
        self.widen = nn.Linear(width, config.context_hidden, device=device)
        self.project = nn.Linear(config.context_hidden, config.d_context, device=device)
        self.norm = nn.RMSNorm(config.d_head, device=device)

    def forward(self, batch: GrmBatch) -> Context:
        sparse = self.tables(batch.features).values()
        return self.encode(sparse, batch)

    def encode(self, sparse: Tensor, batch: GrmBatch) -> Context:
        """From the looked-up embeddings, float[T, features * d_sparse]."""
        config = self.config
        tokens = self.project(functional.silu(self.widen(sparse.to(self.widen.weight.dtype))))
        rows, width = batch.mask.shape
        padded = tokens.new_zeros(rows * width, config.d_context).index_copy(0, batch.slot, tokens)
        padded = padded.view(rows, width, -1, config.d_head).to(self.norm.weight.dtype)
        heads = self.norm(padded).transpose(1, 2)  # [B, L_kv * S_kv * G_kv, S, d_head]
        chunks = heads.split(config.context_groups, dim=1)
        keys = chunks[:: config.context_splits]
        values = chunks[1::2] if config.context_splits == 2 else keys
        bias = torch.zeros_like(batch.mask, dtype=tokens.dtype).masked_fill(~batch.mask, float("-inf"))
        return Context(tuple(keys), tuple(values), bias[:, None, None, :])
