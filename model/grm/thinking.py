"""What the trunk of a lazy decoder is to think of: the cluster that the next code belongs to (S²GR, arXiv 2601.18664).

S²GR puts a continuous vector before every code and teaches it, by contrast, the cluster of code vectors in which the code lies: the model
is to decide roughly before it decides exactly. LazyAR's trunk has such a vector of every level already, made without the codes before it.
It is taught instead, and a search takes no step more. Nothing of this is read when the model is asked: it is a loss, and one small map a
level.

Left out of S²GR: the vectors as positions of their own, and the auxiliary decoder that gives the first of them a target for the whole SID.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.grm.presets import GrmConfig
from model.sid import quantizer

TEMPERATURE: Final = 0.07


class Thinking(nn.Module):
    """Trunk states → log-probability of each target's cluster.

    The clusters follow from codebooks and are no part of the model's state: who trains gives them (`use`).
    """

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        clusters = config.thinking
        self.project = nn.ModuleList(nn.Linear(config.d_model, clusters, bias=False, device=device) for _ in config.codes)
        self.centres: list[Tensor] = []
        self.cluster_of: list[Tensor] = []

    def use(self, codebooks: Sequence[quantizer.Vectors]) -> None:
        """Take the clusters of these codebooks, float32[codes, d] a level: k-means of the code vectors, `thinking` a level or fewer where
        there are fewer different vectors.

        The centres are kept in coordinates of the space that they span, which changes no cosine between them and needs no width of its own.

        Raises:
            ValueError: they are not of the model's levels and codes.
        """
        sizes = tuple(len(codebook) for codebook in codebooks)
        if sizes != self.config.codes:
            raise ValueError(f"codebooks of {sizes} codes: expected {self.config.codes}")
        like = next(self.parameters())
        self.centres, self.cluster_of = [], []
        for codebook in codebooks:
            (centres,) = quantizer.fit(codebook, 1, self.config.thinking, self.config.seed)
            _, spanned = np.linalg.qr(centres.T.astype(np.float64))  # [at most clusters, clusters]
            room = np.zeros((len(centres), self.config.thinking))
            room[:, : len(spanned)] = spanned.T
            self.centres.append(functional.normalize(torch.from_numpy(room), dim=1).to(like))
            self.cluster_of.append(torch.from_numpy(quantizer.encode(codebook, [centres])[:, 0].astype(np.int64)).to(like.device))

    @property
    def ready(self) -> bool:
        return bool(self.centres)

    def forward(self, trunk: Tensor, targets: Tensor) -> Tensor:
        """log softmax_k(cos(W t_l, c_lk) / τ) at the cluster of each target's code (L_align of S²GR, its negative mean).

        Args:
            trunk: float[B, L, d_model].
            targets: int64[B, L].

        Returns:
            float[B, L].
        """
        found = []
        for level, (project, centres, cluster_of) in enumerate(zip(self.project, self.centres, self.cluster_of, strict=True)):
            cosine = functional.normalize(project(trunk[:, level]), dim=1) @ centres.T
            log_prob = torch.log_softmax(cosine / TEMPERATURE, 1)
            found.append(log_prob.gather(1, cluster_of[targets[:, level]].unsqueeze(1)))
        return torch.cat(found, 1)
