"""Beam search over the levels of an SID: a width per level, one context for all beams, an optional trie of allowed SIDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.avoid import allowed
from kernels.trie import Prefixes
from model.grm.decoder import Context, Decoder
from model.grm.expansion import Expansion
from model.grm.presets import GrmConfig


@dataclass(frozen=True)
class Beams:
    """The best SIDs of each request, best first: the likeliest, or by their value too (`GrmConfig.value_rank`).

    Attributes:
        sids: int64[B, W, L]; -1 in a beam that does not exist.
        log_prob: float32[B, W]; -inf in a beam that does not exist.
    """

    sids: Tensor
    log_prob: Tensor


LEAST_VALUE = 1e-3
"""What is expected to be worth less counts as this much: a logarithm of nothing would overrule every probability."""

Prior = Callable[[Tensor], Tensor]
"""Logits float[B, W, codes] that follow codes int64[B, W, level], to be added to the decoder's."""


def search(
    decoder: Decoder,
    priors: Sequence[Prior],
    context: Context,
    widths: Sequence[int],
    trie: Prefixes | None = None,
    avoid: Sequence[Tensor] = (),
) -> Beams:
    """Exact when every width is at least the number of prefixes of its level.

    Probabilities are normalised over the whole codebook, also with a trie or something to avoid: both decide what may be said, not how
    likely it is.

    Args:
        widths: beams kept after each level; the last is the number of results.
        avoid: int64[B, n, length] for some lengths: beams that each request does not go on with, prefixes or whole SIDs; -1 where fewer.

    Raises:
        ValueError: not one positive width per level.
    """
    kept = _kept(decoder.config, widths)
    with torch.inference_mode():
        valued = decoder.config.value_rank > 0
        growing = Growing(decoder, priors, context, max(kept if valued else kept[:-1], default=1), trie, avoid)
        for width in kept:
            growing.keep(*growing.select(width))
        sids, score = growing.codes, growing.score
        if valued:
            order = growing.by_value(decoder.config.value_rank)
            sids, score = sids.gather(1, order.unsqueeze(-1).expand_as(sids)), score.gather(1, order)
    # Made out of inference mode these are tensors like any other: a caller may train on them.
    return Beams(sids.masked_fill((score == -torch.inf).unsqueeze(-1), -1), score.clone())


class Growing:
    """A search between two levels.

    Args:
        slots: the most beams of a request that are continued after any level.
        avoid: see `search`.

    Attributes:
        codes: int64[B, W, level], of the beams so far.
        score: float32[B, W] (float64 for such a decoder), their log-probability.
    """

    def __init__(
        self,
        decoder: Decoder,
        priors: Sequence[Prior],
        context: Context,
        slots: int,
        trie: Prefixes | None = None,
        avoid: Sequence[Tensor] = (),
    ) -> None:
        batch, device = len(context.bias), context.bias.device
        self._decoder, self._priors, self._trie = decoder, priors, trie
        self._avoid = {prefixes.shape[-1]: prefixes for prefixes in avoid}
        self._expansion = Expansion(decoder, context, slots)
        self._node = None if trie is None else trie.root(batch)
        self.codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        self.score = torch.zeros(batch, 1, dtype=torch.float32, device=device)

    def select(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of all beams by one code: see `kernels.selection.proj_select`."""
        extra = [prior(self.codes).flatten(0, 1) for prior in self._priors]
        node, bitmask = self._allowed(self.codes.shape[-1])
        return self._expansion.select(self.codes, self.score, width, sum(extra[1:], extra[0]) if extra else None, node, bitmask)

    def keep(self, score: Tensor, parent: Tensor, token: Tensor) -> None:
        """Go on with these continuations [B, W], and with no others."""
        level = self.codes.shape[-1]
        self.codes = self._expansion.advance(parent, token)
        self.score = score
        if self._trie is not None and self._node is not None and level + 1 < self._decoder.config.levels:
            self._node = self._trie.child(self._node.gather(1, parent.long()), self.codes[..., -1], level)

    def by_value(self, power: float) -> Tensor:
        """Order of the finished beams by log p + power · log E[v], the best first: int64[B, W]; one position more tells their values."""
        worth = self._decoder.worth
        assert worth is not None
        logits = self._expansion.value(self.codes)
        expected = torch.softmax(logits, -1) @ worth
        ranked = self.score + power * expected.clamp(min=LEAST_VALUE).log().view_as(self.score)
        return ranked.argsort(dim=1, descending=True, stable=True)

    def _allowed(self, level: int) -> tuple[Tensor | None, Tensor | None]:
        """What may follow each beam: its row int32[M] of a bitmask, and that."""
        prefixes = self._avoid.get(level + 1)
        if prefixes is None:
            return self._in_trie(level)
        mask = allowed(self.codes, prefixes, self._decoder.config.codes[level])
        if self._trie is not None and self._node is not None:
            mask &= self._trie.words(self._node.flatten(), level)
        return torch.arange(len(mask), dtype=torch.int32, device=mask.device), mask

    def _in_trie(self, level: int) -> tuple[Tensor | None, Tensor | None]:
        if self._trie is None or self._node is None:
            return None, None
        flat, bitmask = self._node.flatten(), self._trie.allowed(level)
        if bitmask is not None:
            return flat.int(), bitmask
        words = self._trie.words(flat, level)
        return torch.arange(len(words), dtype=torch.int32, device=words.device), words


def _kept(config: GrmConfig, widths: Sequence[int]) -> list[int]:
    """Widths, none wider than there are prefixes.

    Raises:
        ValueError: not one positive width per level.
    """
    if len(widths) != config.levels or min(widths) < 1:
        raise ValueError(f"widths is {list(widths)}: expected {config.levels} positive numbers, one per level")
    kept, beams = [], 1
    for width, codes in zip(widths, config.codes, strict=True):
        beams = min(width, beams * codes)
        kept.append(beams)
    return kept
