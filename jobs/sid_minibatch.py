"""Codebooks of large catalogues for `sidstream sids build`: by mini-batches, resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jobs.settings import ConfigError, Sids
from model.sid import minibatch, quantizer
from model.sid.bundle import Fit, Vectors

log = logging.getLogger("sidstream.sids")

LARGE = 1 << 18


def wanted(items: int, sizes: Sids) -> bool:
    """Whether a catalogue of so many items is fitted by mini-batches.

    Raises:
        ConfigError: it is, and a variant is asked for that only plain k-means has.
    """
    chosen = {"always": True, "never": False, "auto": min(items, quantizer.VECTORS_PER_CODE * sizes.codes) >= LARGE}[sizes.minibatch]
    if chosen and (sizes.balance == "exact" or sizes.uniformity or sizes.fsq_values):
        raise ConfigError(
            f"{items} items with {sizes.codes} codes are fitted by mini-batches, which have no exact balance, uniformity or grid: "
            "set sids.balance to usage or none and sids.uniformity and sids.fsq_values to 0, or sids.minibatch to never"
        )
    return chosen


def fit_in(folder: Path, sizes: Sids, seed: int) -> Fit:
    """The fit for `bundle.build`; its checkpoints lie in `folder` until it is done, by plan and content of the vectors."""

    def fit(vectors: Vectors, levels: int, factor: str) -> list[Vectors]:
        plan = minibatch.Plan(
            levels=levels,
            codes=min(sizes.codes, len(vectors)),
            steps=sizes.minibatch_steps,
            balance=sizes.balance == "usage",
            seed=seed + (factor == "creative"),
        )
        digest = hashlib.sha256(json.dumps(asdict(plan)).encode())
        digest.update(np.ascontiguousarray(vectors).data)
        checkpoint = folder / digest.hexdigest()[:16]
        resumed = (checkpoint / "state.safetensors").exists()
        memory = plan.memory_bytes(vectors.shape[1])
        log.info("event=minibatch factor=%s vectors=%d memory_mb=%d resumed=%s", factor, len(vectors), memory >> 20, resumed)
        with tqdm(total=levels * plan.steps, desc=factor, unit="batch", disable=None) as bar:

            def progress(level: int, step: int, _: float) -> None:
                bar.update(level * plan.steps + step - bar.n)

            books = minibatch.fit(vectors, plan, device=sizes.device, checkpoint=checkpoint, progress=progress)
        shutil.rmtree(checkpoint, ignore_errors=True)
        return books

    return fit
