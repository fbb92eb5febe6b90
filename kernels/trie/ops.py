"""A trie's step as torch custom ops, over the arrays of one level: the backend is chosen here."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.trie import cpu


@torch.library.custom_op("sidstream::trie_child_dense", mutates_args=())
def child_dense(
    node: Tensor,
    token: Tensor,
    bits: Tensor,
    rank: Tensor,
    live: Tensor,
    base: Tensor,
    offset: Tensor,
    shift: int,
    vocabulary: int,
    backend: str = "auto",
) -> Tensor:
    """The node int64[...] that token int64[...] leads to from node int64[...] in a dense level, -1 where there is none.

    Args:
        bits, rank, live: of the level, see `levels.Dense`; a token leads on where its bit of `live` is set.
        base, offset, shift: where the edges of a node begin, see `levels.Starts`.
        vocabulary: tokens of the level.
    """
    if dispatch.resolve(backend, node) == "triton":
        from kernels.trie.triton import child_dense as kernel

        return kernel(node, token, bits, rank, live, base, offset, shift, vocabulary)
    return cpu.child_dense(node, token, bits, rank, live, base, offset, shift, vocabulary)


@torch.library.custom_op("sidstream::trie_child_sparse", mutates_args=())
def child_sparse(
    node: Tensor,
    token: Tensor,
    tokens: Tensor,
    live: Tensor | None,
    base: Tensor,
    offset: Tensor,
    shift: int,
    most: int,
    backend: str = "auto",
) -> Tensor:
    """As `child_dense`, in a sparse level.

    Args:
        tokens, live: of the level, see `levels.Sparse`; without `live` dead edges lead on too.
        most: children of a node, at most; it bounds the bisection.
    """
    if dispatch.resolve(backend, node) == "triton":
        from kernels.trie.triton import child_sparse as kernel

        return kernel(node, token, tokens, live, base, offset, shift, most)
    return cpu.child_sparse(node, token, tokens, live, base, offset, shift, most)


@torch.library.custom_op("sidstream::trie_words_sparse", mutates_args=())
def words_sparse(
    node: Tensor,
    tokens: Tensor,
    live: Tensor,
    base: Tensor,
    offset: Tensor,
    shift: int,
    vocabulary: int,
    backend: str = "auto",
) -> Tensor:
    """The bits int32[M, ceil(vocabulary / 32)] of the living children of each node int64[M] of a sparse level; none of node -1.

    Args:
        tokens, live: see `levels.Sparse`. base, offset, shift: see `child_dense`.
    """
    if dispatch.resolve(backend, node) == "triton":
        from kernels.trie.triton import words_sparse as kernel

        return kernel(node, tokens, live, base, offset, shift, vocabulary)
    return cpu.words_sparse(node, tokens, live, base, offset, shift, vocabulary)


@words_sparse.register_fake
def _(
    node: Tensor, tokens: Tensor, live: Tensor, base: Tensor, offset: Tensor, shift: int, vocabulary: int, backend: str = "auto"
) -> Tensor:
    return node.new_empty(len(node), -(-vocabulary // 32), dtype=torch.int32)


@child_dense.register_fake
@child_sparse.register_fake
def _(node: Tensor, *_: object) -> Tensor:
    return torch.empty_like(node, memory_format=torch.contiguous_format)
