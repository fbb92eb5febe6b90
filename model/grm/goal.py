"""Where the first thought is to go: what a light auxiliary decoder expects of the whole SID at once (S²GR, arXiv 2601.18664).

It has half the depth, reads the context alone, and is taught by contrast within the batch: v_g is to be nearest to the mean embedding of
its own target's codes, L_InfoNCE = −log exp(cos(v_i, e_i) / τ) / Σ_j exp(cos(v_i, e_j) / τ). The first thought is drawn to it, never it
to the thought: L_Reg = 1 − cos(t_1, sg(v_g)). Nothing of this is read when the model is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.grm.decoder import EMBEDDING_STD, Block, Context
from model.grm.presets import GrmConfig
from model.grm.thinking import TEMPERATURE


class Goal(nn.Module):
    """Context → v_g, and what it and the first thought lose by it."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Parameter(torch.empty(config.d_model, device=device))
        self.blocks = nn.ModuleList(Block(config, device) for _ in range(max(1, config.layers // 2)))
        self.norm = nn.RMSNorm(config.d_model, device=device)
        nn.init.normal_(self.start, std=EMBEDDING_STD)

    def expect(self, context: Context) -> Tensor:
        """v_g, float[B, d_model]."""
        hidden = self.start.expand(len(context.bias), 1, 1, -1)
        for index, block in enumerate(self.blocks):
            chunk = index * self.config.context_layers // len(self.blocks)
            hidden, _ = block(hidden, context.keys[chunk], context.values[chunk], context.bias, None)
        expected: Tensor = self.norm(hidden)[:, 0, 0]
        return expected

    def forward(self, context: Context, codes: nn.ModuleList, thought: Tensor, targets: Tensor) -> Tensor:
        """The negative of L_InfoNCE + λ L_Reg, before the mean over rows.

        Args:
            codes: embedding of the codes of every level.
            thought: float[B, d_model], t_1.
            targets: int64[B, L]; equal ones are not held against each other.

        Returns:
            float[B, L]: all of it in the first column, where the first code's log-probability is.
        """
        embedded = torch.stack([embedding(targets[:, level]) for level, embedding in enumerate(codes)], 1).mean(1)
        expected = self.expect(context)
        cosine = functional.normalize(expected, dim=1) @ functional.normalize(embedded, dim=1).T
        same = (targets.unsqueeze(1) == targets).all(-1) & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
        told = torch.log_softmax((cosine / TEMPERATURE).masked_fill(same, -torch.inf), 1).diagonal()
        near = functional.cosine_similarity(thought, expected.detach(), dim=1)
        return functional.pad((told - self.config.thinking_goal * (1 - near)).unsqueeze(1), (0, targets.shape[1] - 1))
