"""Residual k-means over a file that is larger than the memory it may use: seconds, peak memory beside the stated bound, distortion.

    python -m benchmarks.sid_scale --folder DIR [--vectors 10000000] [--codes 8192] [--steps 600] [--device cpu] [--report FILE]

Writes a file of clustered vectors (128 numbers each; 5.1 GB for 10 million) into DIR, unless it is there, and fits two levels over it.
Interrupted, it goes on from its checkpoint in DIR when it is called again; the seconds are then those of the last call, and it says so.
Peak memory is anonymous memory (RssAnon), sampled every 20 ms, above what the process held before: pages of the mapped file are the
system's, who may drop them at any time. Nothing is extrapolated: what is printed was run, with the number of steps that is printed.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import provenance
from model.sid import minibatch, quantizer

DIMENSIONS = 128
CENTRES = 50_000
CHUNK = 100_000
ASKED = 20_000


def write_vectors(path: Path, count: int, seed: int) -> None:
    """Unit vectors around centres with a skewed number of members each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CENTRES, DIMENSIONS), np.float32)
    size = 1 / (np.arange(CENTRES) + 100.0)
    unfinished = path.with_suffix(".unfinished")
    file = np.lib.format.open_memmap(unfinished, "w+", np.float32, (count, DIMENSIONS))
    for start in tqdm(range(0, count, CHUNK), desc="vectors", unit="chunk", disable=None):
        rows = min(CHUNK, count - start)
        chunk = centres[rng.choice(CENTRES, rows, p=size / size.sum())] + 0.7 * rng.standard_normal((rows, DIMENSIONS), np.float32)
        file[start : start + rows] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
    file.flush()
    unfinished.rename(path)


class Peak:
    """Largest anonymous resident memory of this process while it is open, in bytes above that at its opening."""

    def __enter__(self) -> Peak:
        self._start = self.bytes = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes -= self._start

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, _anonymous())


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this program measures memory on Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the vectors and the checkpoint")
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=600, help="batches of 16,384 vectors per level")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report", type=Path, help="JSON file; default: benchmarks/results/sid_scale.json")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"vectors-{options.vectors}.npy"
    if not path.exists():
        write_vectors(path, options.vectors, seed=0)
    vectors = np.load(path, mmap_mode="r")
    plan = minibatch.Plan(levels=2, codes=options.codes, steps=options.steps)
    # One step of a plan of one level, so that threads and libraries are there before memory is counted.
    minibatch.fit(vectors[:1000], minibatch.Plan(levels=1, codes=8, batch=64, steps=1), device=options.device)
    checkpoint = options.folder / f"fit-{options.vectors}-{options.codes}-{options.steps}"
    resumed = (checkpoint / "state.safetensors").exists()
    started = time.monotonic()
    with Peak() as peak, tqdm(total=plan.levels * plan.steps, unit="batch", disable=None) as bar:
        books = minibatch.fit(vectors, plan, device=options.device, checkpoint=checkpoint, progress=lambda *_: bar.update() and None)
    seconds = time.monotonic() - started
    asked = np.sort(np.random.default_rng(1).choice(len(vectors), min(ASKED, len(vectors)), replace=False))
    sample = np.array(vectors[asked])
    started = time.monotonic()
    codes = np.concatenate(list(minibatch.encode(sample, books, device=options.device)))
    encoding = time.monotonic() - started
    total = float(((sample - sample.mean(axis=0)) ** 2).sum())
    lost = [float(((sample - quantizer.decode(codes[:, :levels], books[:levels])) ** 2).sum()) / total for levels in (1, 2)]
    found = {
        "vectors": len(vectors),
        "dimensions": DIMENSIONS,
        "codes": options.codes,
        "levels": plan.levels,
        "steps": plan.steps,
        "batch": plan.batch,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "resumed": resumed,
        "peak_bytes": peak.bytes,
        "stated_bytes": plan.memory_bytes(DIMENSIONS),
        "file_bytes": path.stat().st_size,
        "encoded_per_second": len(sample) / encoding,
        "distortion": lost,
        "used": [len(np.unique(codes[:, level])) for level in range(plan.levels)],
        "asked": len(sample),
    }
    shutil.rmtree(checkpoint)
    for name, value in found.items():
        print(f"{name:20} {value}")
    print(provenance.write("sid_scale", found, ("numpy", "torch"), options.report))


if __name__ == "__main__":
    main()
