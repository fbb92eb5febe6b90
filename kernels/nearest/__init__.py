"""The SIDs that exist nearest to those that were asked for, by distance in codebook space: exact, or by a descent in the trie.

`nearest` measures every place there is, by one product of matrices. `nearest_sid` goes down the trie as a residual quantizer does, with
the best few nodes of each level: it looks at a small part of the catalogue and may miss the nearest; how often, the program
`benchmarks.kernels.nearest` tells.

A squared distance is the sum of squared differences in float64. The order is total: distance, then row or leaf, ascending. What is at no
distance (NaN or inf in a place or a centroid) is not found; a missing slot has distance inf and row -1. An answer does not depend on the
batch that it was asked in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import dispatch
from kernels.nearest import cpu, native
from kernels.trie import Trie


def nearest(wanted: Tensor, places: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest places of each wanted one, nearest first, ties to the smaller row.

    Args:
        wanted: float32[M, d], reconstructions of the SIDs asked for (content and creative side by side).
        places: float32[N ≥ k, d], those of the SIDs that have a video.

    Returns:
        squared distance float64[M, k], row int64[M, k].

    Raises:
        ValueError: fewer than k places, or widths that differ.
    """
    if wanted.dim() != 2 or places.dim() != 2 or wanted.shape[1] != places.shape[1] or not 1 <= k <= len(places):
        raise ValueError(f"wanted {list(wanted.shape)}, places {list(places.shape)}, k {k}: [M, d], [N, d] and 1 ≤ k ≤ N are expected")
    # On a GPU this is a library's product and a selection.
    if not dispatch.direct("torch", wanted):
        return _nearest(wanted, places, k)
    return native.nearest(wanted, places, k) if native.fits(wanted, places, k) else cpu.nearest(wanted, places, k)


def nearest_sid(
    wanted: Tensor, trie: Trie, codebooks: Sequence[Tensor], k: int = 1, *, beam: int = 64, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Live leaves near each wanted SID, nearest first, by descent: the `beam` nodes of a level that leave the shortest residual go on.

    A wanted SID that is alive is its own nearest, at distance 0. Exact where every level has at most `beam` nodes; no more is promised.

    Args:
        wanted: int[M, L], SIDs that may exist or not.
        codebooks: float32[codes of the level, d] per level; a SID's place is the sum of its centroids.
        k: leaves per wanted SID, at most `beam`.

    Returns:
        squared distance float64[M, k], leaf int64[M, k].

    Raises:
        ValueError: not 1 ≤ k ≤ beam, codebooks that are not the trie's, or a code that its level does not have.
    """
    counts = tuple(len(book) for book in codebooks)
    if counts != trie.code_counts or wanted.dim() != 2 or wanted.shape[1] != len(counts) or not 1 <= k <= beam:
        raise ValueError(
            f"wanted {list(wanted.shape)}, codebooks of {counts} centroids, k {k}, beam {beam}: [M, {len(trie.code_counts)}], "
            f"{trie.code_counts} and 1 ≤ k ≤ beam are expected"
        )
    outside = ((wanted < 0) | (wanted >= torch.tensor(counts, device=wanted.device))).any(1)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"SID {wanted[row].tolist()} (row {row}): codes in 0 ≤ code < {counts} are expected")
    wanted = wanted.long()
    residual = torch.stack([book[wanted[:, level]].double() for level, book in enumerate(codebooks)]).sum(0).unsqueeze(1)
    node, own = trie.root(len(wanted)), trie.root(len(wanted))[:, 0]
    distance = residual.new_zeros(node.shape)
    if not len(wanted):
        return distance.expand(0, k), node.expand(0, k)
    for level, book in enumerate(codebooks):
        offsets, token, child = trie.expand(node.flatten(), level)
        own = trie.child(own, wanted[:, level], level)
        if not len(token):
            distance, node = distance.new_full((len(wanted), 1), torch.inf), node.new_full((len(wanted), 1), -1)
            break
        width = min(k if level + 1 == len(codebooks) else beam, len(token))
        distance, place = nearest_children(residual, offsets, token, child, own, book, width, backend=backend)
        at = place.clamp(min=0)
        parent = (torch.searchsorted(offsets, at, right=True) - 1) % node.shape[1]
        taken = residual.gather(1, parent.unsqueeze(-1).expand(-1, -1, residual.shape[2]))
        residual, node = taken - book[token[at]].double(), torch.where(place >= 0, child[at], -1)
    missing = k - node.shape[1]
    pad = torch.nn.functional.pad
    return pad(distance.clamp(min=0), (0, missing), value=torch.inf), pad(node, (0, missing), value=-1)


def nearest_children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """One level of a descent: the children whose centroids leave the k shortest residuals, over all W nodes of each wanted SID.

    Args:
        residual: float64[M, W, d], what is left of the wanted place at each node.
        offsets, token, child: int64[M·W + 1], int64[T], int64[T], the children of all nodes, as `Trie.expand` gives them.
        own: int64[M], a child that comes first, at distance -1, wherever it is.
        codebook: float32[codes, d].

    Returns:
        squared distance float64[M, k], ascending, and the place int64[M, k] in `token`.
    """
    if dispatch.direct(backend, residual):
        return cpu.nearest_children(residual, offsets, token, child, own, codebook, k)
    return _nearest_children(residual, offsets, token, child, own, codebook, k, backend)


@torch.library.custom_op("sidstream::nearest", mutates_args=())
def _nearest(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return cpu.nearest(wanted, places, k)


@torch.library.custom_op("sidstream::nearest_children", mutates_args=())
def _nearest_children(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    if dispatch.resolve(backend, residual) == "triton":
        from kernels.nearest.triton import nearest_children as kernel

        return kernel(residual, offsets, token, child, own, codebook, k)
    return cpu.nearest_children(residual, offsets, token, child, own, codebook, k)


@_nearest.register_fake
def _(wanted: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return wanted.new_empty(len(wanted), k, dtype=torch.float64), wanted.new_empty(len(wanted), k, dtype=torch.int64)


@_nearest_children.register_fake
def _(
    residual: Tensor, offsets: Tensor, token: Tensor, child: Tensor, own: Tensor, codebook: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    return residual.new_empty(len(residual), k), residual.new_empty(len(residual), k, dtype=torch.int64)


__all__ = ["nearest", "nearest_children", "nearest_sid"]
