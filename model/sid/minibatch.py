"""Residual k-means over more vectors than fit into memory, on a CPU or a GPU, that goes on after a kill as if there had been none.

Mini-batch k-means (Sculley, 2010): a centroid moves towards the mean of the batch's vectors that are nearest to it, by a rate that falls
with the number of vectors it has seen. Only a batch of rows is ever read at a time; the residuals of a batch are computed from the levels
before, never stored. Batch t of a level is a function of (seed, level, t), so the state after it is too, and a checkpoint of centroids and
counts is all that a run needs to go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from model.sid.quantizer import BALANCE, CLIP

Vectors = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

# A batch is this many runs of neighbouring rows: a disk reads runs, and a file in some order must not give batches of one kind.
RUNS = 64
SETTLING_SHARE = 0.1
# A centroid with less than this share of the average one's vectors starts again at a badly described vector.
DEAD_SHARE = 0.02


@dataclass(frozen=True)
class Plan:
    """Sizes of a fit.

    codes: centroids per level. batch: rows read at a time. steps: batches per level. sample_per_code: rows per code that the k-means++
    starts are drawn from. block: numbers in one block of distances. checkpoint_every: batches between checkpoints. balance: distances grow
    with a centroid's share of the vectors, as in `model.sid.quantizer`.
    """

    levels: int = 2
    codes: int = 8192
    batch: int = 16_384
    steps: int = 600
    sample_per_code: int = 8
    block: int = 1 << 24
    checkpoint_every: int = 20
    balance: bool = True
    seed: int = 0

    def memory_bytes(self, dimensions: int) -> int:
        """Upper bound of the bytes that fit() holds beyond what it is given, whatever the number of vectors.

        A batch three times (as read, as residual, one gathered centroid for each row), a block of distances twice, the codebooks of all
        levels, four arrays of a codebook's size (sums, centroids, the best so far, a checkpoint on its way to disk), and, while a level
        starts, the sample of the k-means++ starts twice instead of the batch.
        """
        rows = 4 * dimensions * (3 * self.batch + (self.levels + 4) * self.codes + 2 * self.sample_per_code * self.codes)
        return rows + 8 * self.block


class Interrupted(Exception):
    """The checkpoint belongs to another fit; the message says what differs."""


def fit(
    vectors: Vectors,
    plan: Plan,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Vectors]:
    """Codebooks of residual k-means, one float32[codes, d] per level.

    Args:
        vectors: float32[N, d], N ≥ codes; an array or `numpy.load(path, mmap_mode="r")`.
        device: where distances are computed. Equal input, plan, device and number of threads give equal bits.
        checkpoint: folder of the state; an unbroken run and one that was killed and called again with it give the same codebooks.
        progress: called after every batch with level, batch, and the batch's mean squared distance.

    Raises:
        ValueError: fewer vectors than codes, or a vector that is not finite; the message names its row.
        Interrupted: the checkpoint is one of another plan or of another number of vectors.
    """
    rows, dimensions = vectors.shape
    if rows < plan.codes:
        raise ValueError(f"{rows} vectors cannot have {plan.codes} codes a level: take fewer codes")
    state = _State.load(checkpoint, plan, rows, dimensions) if checkpoint else None
    if state is None:
        state = _State([], _start(vectors, plan, [], device), torch.zeros(plan.codes), 0)
    while True:
        _fit_level(vectors, plan, state, device, checkpoint, progress)
        state.done.append(_finished(vectors, plan, state, device))
        if len(state.done) == plan.levels:
            return [book.numpy() for book in state.done]
        state = _State(state.done, _start(vectors, plan, state.done, device), torch.zeros(plan.codes), 0)
        if checkpoint:
            state.save(checkpoint, plan, rows)


def encode(
    vectors: Vectors, codebooks: Sequence[Vectors], *, batch: int = 16_384, block: int = 1 << 24, device: str = "cpu"
) -> Iterator[Codes]:
    """Codes int32[≤ batch, levels] of one batch of rows after another, in order; memory does not depend on the number of vectors."""
    books = [torch.from_numpy(np.ascontiguousarray(book)).to(device) for book in codebooks]
    for start in range(0, len(vectors), batch):
        residual = _read(vectors, [slice(start, start + batch)]).to(device)
        codes = torch.empty((len(residual), len(books)), dtype=torch.int32)
        for level, book in enumerate(books):
            code, _ = _nearest(residual, book, None, block)
            residual = residual - book[code]
            codes[:, level] = code.cpu().int()
        yield codes.numpy()


@dataclass
class _State:
    """done: codebooks of the levels before. centroids: float32[codes, d]. seen: float32[codes], vectors of each. step: the next batch."""

    done: list[torch.Tensor]
    centroids: torch.Tensor
    seen: torch.Tensor
    step: int

    def save(self, folder: Path, plan: Plan, rows: int) -> None:
        """One file, replaced in one step: a kill leaves the state before or the state after."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"done.{level:02d}": book for level, book in enumerate(self.done)}
        tensors |= {"centroids": self.centroids.cpu().contiguous(), "seen": self.seen.cpu()}
        facts = {"plan": json.dumps(asdict(plan)), "rows": str(rows), "step": str(self.step)}
        safetensors.torch.save_file(tensors, folder / "next.safetensors", metadata=facts)
        (folder / "next.safetensors").rename(folder / "state.safetensors")

    @classmethod
    def load(cls, folder: Path, plan: Plan, rows: int, dimensions: int) -> _State | None:
        path = folder / "state.safetensors"
        if not path.exists():
            return None
        with safetensors.safe_open(str(path), "pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = (json.loads(facts["plan"]), int(facts["rows"]), tensors["centroids"].shape[1])
        if found != (asdict(plan), rows, dimensions):
            raise Interrupted(f"{path} is the state of another fit (plan, rows, dimensions: {found}): remove it or name another folder")
        done = [tensors[name] for name in sorted(tensors) if name.startswith("done.")]
        return cls(done, tensors["centroids"], tensors["seen"], int(facts["step"]))


def _fit_level(
    vectors: Vectors,
    plan: Plan,
    state: _State,
    device: str,
    checkpoint: Path | None,
    progress: Callable[[int, int, float], None] | None,
) -> None:
    level = len(state.done)
    books = [book.to(device) for book in state.done]
    state.centroids, state.seen = state.centroids.to(device), state.seen.to(device)
    settle_from = plan.steps - int(plan.steps * SETTLING_SHARE)
    while state.step < plan.steps:
        residual = _residual(_read(vectors, _runs(len(vectors), plan.batch, (plan.seed, level, state.step))), books, plan.block, device)
        scale = None
        if plan.balance and 0 < state.step < settle_from:
            scale = ((state.seen + 1) / (state.seen + 1).mean()).pow(BALANCE).clamp(*CLIP)
        code, distance = _nearest(residual, state.centroids, scale, plan.block)
        _move(state, residual, code)
        if state.step < settle_from and state.step % 10 == 9:
            _revive(state, residual, distance, plan)
        state.step += 1
        if progress is not None:
            progress(level, state.step, float(distance.mean()))
        if checkpoint and (state.step % plan.checkpoint_every == 0 or state.step == plan.steps):
            state.save(checkpoint, plan, len(vectors))


def _move(state: _State, residual: torch.Tensor, code: torch.Tensor) -> None:
    """Each centroid becomes the mean of all vectors that it has seen: old mean and the batch's sum, weighted by counts."""
    # A product with sorted segments instead of index_add_: the latter adds in any order on a GPU.
    order = torch.argsort(code, stable=True)
    count = torch.bincount(code, minlength=len(state.centroids))
    sums = torch.segment_reduce(residual[order], "sum", lengths=count, axis=0)
    seen = state.seen + count
    share = (1.0 / seen.clamp(min=1.0))[:, None]
    state.centroids = torch.where(count[:, None] > 0, state.centroids + share * (sums - count[:, None] * state.centroids), state.centroids)
    state.seen = seen


def _revive(state: _State, residual: torch.Tensor, distance: torch.Tensor, plan: Plan) -> None:
    """Move centroids that hardly anything is nearest to onto the vectors of this batch that are described worst."""
    dead = torch.nonzero(state.seen < DEAD_SHARE * state.seen.mean())[:, 0][: len(residual)]
    if len(dead):
        worst = torch.argsort(distance, descending=True, stable=True)[: len(dead)]
        state.centroids[dead] = residual[worst]
        state.seen[dead] = state.seen.mean()


def _finished(vectors: Vectors, plan: Plan, state: _State, device: str) -> torch.Tensor:
    """The level's codebook; all zeros where it would make a held-out batch's reconstruction worse (nothing is left to describe)."""
    level = len(state.done)
    rows = _runs(len(vectors), plan.batch, (plan.seed, level, plan.steps))
    residual = _residual(_read(vectors, rows), [book.to(device) for book in state.done], plan.block, device)
    _, distance = _nearest(residual, state.centroids, None, plan.block)
    worse = float(distance.double().sum()) > float(residual.double().pow(2).sum())
    return (torch.zeros_like(state.centroids) if worse else state.centroids).cpu()


def _start(vectors: Vectors, plan: Plan, done: Sequence[torch.Tensor], device: str) -> torch.Tensor:
    """k-means++ starts (Arthur and Vassilvitskii, 2007) float32[codes, d] in a sample of the residuals."""
    level = len(done)
    size = min(plan.sample_per_code * plan.codes, len(vectors))
    books = [book.to(device) for book in done]
    sample = torch.cat(
        [
            _residual(
                _read(vectors, _runs(len(vectors), min(plan.batch, size), (plan.seed, level, plan.steps + 1 + part))),
                books,
                plan.block,
                device,
            )
            for part in range(-(-size // plan.batch))
        ]
    )
    rng = np.random.default_rng([plan.seed, level, 7])
    length = sample.pow(2).sum(dim=1)
    distance = torch.full_like(length, torch.inf)
    chosen = [int(rng.integers(len(sample)))]
    for draw in rng.random(plan.codes - 1).tolist():
        last = sample[chosen[-1]]
        distance = torch.minimum(distance, (length - 2.0 * (sample @ last) + last.pow(2).sum()).clamp(min=0.0))
        distance[chosen[-1]] = 0.0
        mass = torch.cumsum(distance.double(), dim=0)
        # Where every distinct vector is a start already, any row will do: its centroid stays unused.
        chosen.append(int(torch.searchsorted(mass, draw * mass[-1], right=True).clamp(max=len(sample) - 1)))
    return sample[chosen].cpu()


def _runs(rows: int, batch: int, key: tuple[int, int, int]) -> list[slice]:
    """RUNS places of equal length in the file, drawn by `key`, in the file's order."""
    length = max(1, min(batch, rows) // RUNS)
    count = max(1, min(batch, rows) // length)
    starts = np.sort(np.random.default_rng(list(key)).integers(0, rows - length + 1, count))
    return [slice(start, start + length) for start in starts.tolist()]


def _read(vectors: Vectors, places: Sequence[slice]) -> torch.Tensor:
    """Rows float32[M, d] at these places, checked.

    Raises:
        ValueError: a row is not finite; the message names its number in the file.
    """
    parts = [np.asarray(vectors[place], np.float32) for place in places]
    read = np.concatenate(parts) if len(parts) > 1 else np.array(parts[0])
    if not np.isfinite(read).all():
        for place, part in zip(places, parts, strict=True):
            broken = ~np.isfinite(part).all(axis=1)
            if broken.any():
                row = place.start + int(broken.argmax())
                raise ValueError(f"row {row} of the embeddings is not finite: leave this item out or embed it again")
    return torch.from_numpy(read)


def _residual(rows: torch.Tensor, books: Sequence[torch.Tensor], block: int, device: str) -> torch.Tensor:
    residual = rows.to(device)
    for book in books:
        code, _ = _nearest(residual, book, None, block)
        residual = residual - book[code]
    return residual


def _nearest(residual: torch.Tensor, centroids: torch.Tensor, scale: torch.Tensor | None, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Code int64[M] with the smallest (scaled) squared distance, and the distance float32[M] itself, unscaled."""
    length = centroids.pow(2).sum(dim=1)
    codes, distances = [], []
    for part in residual.split(max(1, block // len(centroids))):
        own = part.pow(2).sum(dim=1, keepdim=True)
        distance = torch.addmm(length, part, centroids.T, alpha=-2.0).add_(own).clamp_(min=0.0)
        code = (distance if scale is None else distance * scale).argmin(dim=1)
        codes.append(code)
        distances.append(distance.gather(1, code[:, None])[:, 0])
    return torch.cat(codes), torch.cat(distances)
