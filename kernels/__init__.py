"""Operations of semantic-ID decoding: each defined in plain torch, and computed by the fastest exact path that the machine has."""

from kernels.select import beam_topk

__all__ = ["beam_topk"]
