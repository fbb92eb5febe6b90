"""What the model is to think of before it says a code: the cluster that the code belongs to (S²GR, arXiv 2601.18664).

S²GR puts a continuous vector before every code and teaches it, by contrast, the cluster of code vectors in which the code lies: the model
is to decide roughly before it decides exactly. With `thinking_tokens` the decoder has these vectors (`model.grm.decoder.Thought`). LazyAR's
trunk has such a vector of every level already, made without the codes before it: it is taught instead, and a search takes no step more.
Nothing of this is read when the model is asked: it is a loss, and one small map a level.
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


class Level(nn.Module):
    """A map of the thought of one level, and what it is compared with: `centres` float[clusters, thinking], unit length, and the
    cluster of each code, `cluster_of` int64[codes]; both follow from a codebook and are no part of the model's state."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(config.d_model, config.thinking, bias=False, device=device)
        self.centres: Tensor | None
        self.cluster_of: Tensor | None
        self.register_buffer("centres", None, persistent=False)
        self.register_buffer("cluster_of", None, persistent=False)

    def use(self, codebook: quantizer.Vectors, seed: int) -> None:
        """Take the clusters of a codebook float32[codes, d].

        The centres are kept in coordinates of the space that they span, which changes no cosine between them and needs no width of its own.
        """
        weight = self.project.weight
        (centres,) = quantizer.fit(codebook, 1, len(weight), seed)
        _, spanned = np.linalg.qr(centres.T.astype(np.float64))  # [at most clusters, clusters]
        room = np.zeros((len(centres), len(weight)))
        room[:, : len(spanned)] = spanned.T
        self.centres = functional.normalize(torch.from_numpy(room), dim=1).to(weight)
        self.cluster_of = torch.from_numpy(quantizer.encode(codebook, [centres])[:, 0].astype(np.int64)).to(weight.device)

    def forward(self, state: Tensor, codes: Tensor) -> Tensor:
        """log softmax_k(cos(W t, c_k) / τ) at the clusters of codes int64[B], for states float[B, d_model]: float[B]."""
        assert self.centres is not None
        assert self.cluster_of is not None
        cosine = functional.normalize(self.project(state), dim=1) @ self.centres.T
        return torch.log_softmax(cosine / TEMPERATURE, 1).gather(1, self.cluster_of[codes].unsqueeze(1)).squeeze(1)


class Thinking(nn.Module):
    """Trunk states or thoughts → log-probability of each target's cluster, once whoever trains has given the clusters (`use`)."""

    def __init__(self, config: GrmConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(Level(config, device) for _ in config.codes)

    def use(self, codebooks: Sequence[quantizer.Vectors]) -> None:
        """Take the clusters of these codebooks, float32[codes, d] a level: k-means of the code vectors, `thinking` a level or fewer where
        there are fewer different vectors.

        Raises:
            ValueError: they are not of the model's levels and codes.
        """
        sizes = tuple(len(codebook) for codebook in codebooks)
        if sizes != self.config.codes:
            raise ValueError(f"codebooks of {sizes} codes: expected {self.config.codes}")
        for level, codebook in zip(self.levels, codebooks, strict=True):
            level.use(codebook, self.config.seed)  # type: ignore[operator]

    @property
    def ready(self) -> bool:
        return all(level.centres is not None for level in self.levels)

    def forward(self, trunk: Tensor, targets: Tensor) -> Tensor:
        """The negative of S²GR's L_align, before its mean.

        Args:
            trunk: float[B, L or more, d_model].
            targets: int64[B, L].

        Returns:
            float[B, L].
        """
        return torch.stack([level(trunk[:, place], targets[:, place]) for place, level in enumerate(self.levels)], 1)
