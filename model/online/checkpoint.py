"""One atomic checkpoint of the trainer: weights, optimizers, ledgers, metrics, and the next offset of every partition whose rows they hold.

A checkpoint is a folder that is written under another name, synced and renamed; the pointer that names the current one is replaced last.
Killed at any moment, the trainer finds the newest whole checkpoint and reads on from its offsets: what is in the weights and what was read
never disagree. Tensors are safetensors and everything else is JSON, so nothing that is loaded can run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from model.online.step import LearnerState

log = logging.getLogger(__name__)

SCHEMA = "checkpoint/1"
TENSORS = "tensors.safetensors"
FACTS = "state.json"
POINTER = "CURRENT"
KEPT = 2

Offsets = dict[str, dict[int, int]]
"""Next offset to read, by topic and partition."""


class CheckpointError(Exception):
    """No checkpoint in the folder can be used although there is one; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """`identity` says what the state belongs to (model, bundle): it is compared, never interpreted."""

    state: LearnerState
    offsets: Offsets
    identity: dict[str, Any]
    number: int = 0


class Checkpoints:
    """The checkpoints in one folder; one writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, make it the current one, and remove all but the latest two.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full; the one before stays current.
        """
        number = 1 + max(self._numbers(), default=0)
        final, partial = self.folder / f"{number:010d}", self.folder / f".{number:010d}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            body = safetensors.torch.save(checkpoint.state.tensors)
            facts = {
                "schema": SCHEMA,
                "number": number,
                "sha256": hashlib.sha256(body).hexdigest(),
                "identity": checkpoint.identity,
                "offsets": {
                    topic: {str(partition): offset for partition, offset in of.items()} for topic, of in checkpoint.offsets.items()
                },
                "facts": checkpoint.state.facts,
            }
            _write(partial / TENSORS, body)
            _write(partial / FACTS, json.dumps(facts).encode())
            _sync(partial)
            os.rename(partial, final)
            _write(self.folder / f".{POINTER}", f"{final.name}\n".encode())
            os.replace(self.folder / f".{POINTER}", self.folder / POINTER)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{final}: {error.strerror or error}") from error
        for old in sorted(self._numbers())[:-KEPT]:
            shutil.rmtree(self.folder / f"{old:010d}", ignore_errors=True)
        for left in self.folder.glob(".*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        return final

    def load(self, identity: Mapping[str, Any]) -> Checkpoint | None:
        """The current checkpoint, or the one before where that is damaged; None where there is none.

        Raises:
            CheckpointError: all that are there are damaged, or they belong to something else.
        """
        numbers = sorted(self._numbers(), reverse=True)
        current = self._pointer()
        reasons = []
        # One newer than the pointer is whole too (the rename comes first), and following it loses nothing.
        for number in sorted(numbers, key=lambda each: (each < current, -each)):
            try:
                return self._read(number, identity)
            except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                reasons.append(f"{self.folder / f'{number:010d}'}: {error}")
                log.warning("checkpoint=%s unusable reason=%s", number, error)
        if reasons:
            raise CheckpointError(
                f"no checkpoint can be used ({'; '.join(reasons)}); move {self.folder} away to train from the first sample"
            )
        return None

    def _read(self, number: int, identity: Mapping[str, Any]) -> Checkpoint:
        folder = self.folder / f"{number:010d}"
        facts = json.loads((folder / FACTS).read_bytes())
        if facts.get("schema") != SCHEMA:
            raise ValueError(f"schema {facts.get('schema')} is not {SCHEMA}")
        if facts["identity"] != json.loads(json.dumps(identity)):
            raise ValueError(f"it belongs to {facts['identity']}, not to {dict(identity)}")
        body = (folder / TENSORS).read_bytes()
        if hashlib.sha256(body).hexdigest() != facts["sha256"]:
            raise ValueError(f"the SHA-256 of {TENSORS} is not the one in {FACTS}")
        state = LearnerState(safetensors.torch.load(body), facts["facts"])
        offsets = {topic: {int(partition): offset for partition, offset in of.items()} for topic, of in facts["offsets"].items()}
        return Checkpoint(state, offsets, facts["identity"], number)

    def _numbers(self) -> list[int]:
        return [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]

    def _pointer(self) -> int:
        try:
            return int((self.folder / POINTER).read_text())
        except (OSError, ValueError):
            return 0


def _write(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
