"""Whether two beam searches found equally good SIDs.

In float32 that is to the rounding of sums. In bfloat16 two correct systems return different SIDs near the cut, so what is compared there is
what the SIDs are worth to the same weights in float32, and that nobody claims a score that its SID does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels import eager
from benchmarks.kernels.model import Found
from model.grm.decoder import Context, Decoder


@dataclass(frozen=True)
class Judge:
    """What SIDs are worth, by float32 weights and the context [1, ...] of the last request in float32."""

    model: Decoder
    context: Context
    dtype: torch.dtype

    @property
    def claim(self) -> float:
        """How far a score may be from what its SID is worth."""
        return 1e-3 if self.dtype == torch.float32 else 0.3

    @property
    def loss(self) -> float:
        """How far the mean worth of two results may be apart."""
        return 1e-3 if self.dtype == torch.float32 else 0.05

    def error(self, found: Found, expected: Found | None) -> str | None:
        """What is wrong with a result, or None; judged on the last request of the batch.

        Args:
            expected: another search's result with the same widths; None: only the claims are checked.
        """
        sids, score = found[0][-1], found[1][-1]
        if not bool(torch.isfinite(score).all()):
            return "a result has no finite score"
        if len(torch.unique(sids, dim=0)) < len(sids):
            return "an SID is returned twice"
        if bool((score.diff() > 0).any()):
            return "results are not in descending order"
        worth = self._worth(sids)
        away = float((worth - score).abs().max())
        if away > self.claim:
            return f"a score is {away:.3g} away from what its SID is worth"
        if expected is None:
            return None
        if expected[0][-1].shape != sids.shape:
            return f"results {list(sids.shape)}, expected {list(expected[0][-1].shape)}"
        apart = float((worth.sort().values - self._worth(expected[0][-1]).sort().values).abs().mean())
        return f"results are worth {apart:.3g} more or less than expected" if apart > self.loss else None

    def _worth(self, sids: Tensor) -> Tensor:
        return eager.log_prob(self.model, self.context, sids)
