"""Operations of semantic-ID decoding: each defined in plain torch, and computed by the fastest exact path that the machine has.

One operation is one package: its `__init__` states the contract and registers a torch custom op, `reference` defines it, `cpu` (where plain
torch can be made fast) and `triton` compute it. Triton is imported when the first kernel runs, never before.
"""

from kernels.selection import beam_topk

__all__ = ["beam_topk"]
