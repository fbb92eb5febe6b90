"""Training by `torchrun`: which process this is, what process 0 read told to all of them, and who speaks."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator

import msgspec
import torch.distributed as dist

from jobs.settings import ConfigError
from model.grm.processes import Processes
from model.online.batches import Arrived
from streaming.records import Sample

log = logging.getLogger("sidstream.trainer")

_ENDED, _FAILED = b".", b"-"
_decoder = msgspec.json.Decoder(list[tuple[int, int, Sample | None]])


class FirstFailedError(Exception):
    """Process 0 cannot read on; it says why."""


def launched() -> int:
    """How many processes `torchrun` started; 1 where it started none."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def join() -> Processes | None:
    """Meet the other processes, if there are any; of all but the first only errors are logged from here on."""
    if launched() == 1:
        return None
    dist.init_process_group("gloo")
    processes = Processes()
    # TorchRec 1.8 calls by their old names what torch 2.13 has renamed.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if processes.rank:
        for name in (None, "sidstream"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return processes


def same(processes: Processes | None, fact: str) -> None:
    """Make sure that all processes are about to do the same.

    Raises:
        ConfigError: this one would not do what process 0 does.
    """
    if processes is not None and (first := processes.tell(fact.encode()).decode()) != fact:
        raise ConfigError(f"process {processes.rank} would train {fact}, process 0 {first}: give both the same configuration and folders")


def told(processes: Processes | None, batches: Iterator[list[Arrived]]) -> Iterator[list[Arrived]]:
    """The batches of process 0 in every process; those of the others are not looked at.

    Raises:
        FirstFailedError: in the others, when process 0 failed to read.
    """
    if processes is None:
        yield from batches
    elif processes.rank == 0:
        while (batch := _next(processes, batches)) is not None:
            processes.tell(msgspec.json.encode([(arrived.partition, arrived.offset, arrived.row) for arrived in batch]))
            yield batch
        processes.tell(_ENDED)
    else:
        while (body := processes.tell(b"")) != _ENDED:
            if body == _FAILED:
                raise FirstFailedError("process 0 cannot read on; it says why")
            yield [Arrived(*fields) for fields in _decoder.decode(body)]


def _next(processes: Processes, batches: Iterator[list[Arrived]]) -> list[Arrived] | None:
    try:
        return next(batches, None)
    except Exception:
        processes.tell(_FAILED)
        raise
