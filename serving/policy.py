"""The published GRM as serving asks it: people in, semantic IDs with log-probabilities out."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from kernels.config import LEAST_CAPABILITY
from kernels.step import available
from model.grm.graph import BeamGraph
from model.grm.inputs import Vocabulary, collate
from model.grm.model import Grm
from model.online.publish import restore
from serving.cache import Codes
from serving.model import Person
from serving.widths import Widths, per_level

log = logging.getLogger(f"sidstream.{__name__}")


class GrmPolicy:
    """One version of the model with the videos that it knows; the vocabulary is shared by the versions of one bundle.

    Args:
        products: of its search on a CPU, see `products`.
    """

    def __init__(self, version: str, grm: Grm, vocabulary: Vocabulary, products: torch.dtype = torch.float32) -> None:
        self.version = version
        self._grm = grm.eval()
        self._grm.decoder.products = products
        self.precision = str(products).removeprefix("torch.")
        self._device = grm.decoder.start.device
        graphed = self._device.type == "cuda" and not grm.config.experts
        self._search = BeamGraph(grm) if graphed else grm.beam
        self._vocabulary = vocabulary

    def beam(self, people: Sequence[Person], widths: Widths) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(SIDs int64[B, W, L], log-probabilities float32[B, W]), best first; −∞ where there is no further beam."""
        with torch.no_grad():  # not inference mode: FBGEMM's CPU lookup is reached through autograd only
            batch = collate(people, self._vocabulary, self._grm.config).to(self._device)
            avoid = [prefixes.to(self._device) for prefixes in _by_length([person.avoid for person in people])]
            beams = self._search(batch, per_level(widths, self._grm.config.levels), avoid=avoid)
        return beams.sids.cpu().numpy(), beams.log_prob.cpu().numpy()

    def learn(self, item_id: int, sid: Codes) -> None:
        """Know a new video, so that it means something in a history."""
        self._vocabulary.learn(item_id, sid)


def _by_length(avoided: Sequence[Sequence[Codes]]) -> list[torch.Tensor]:
    """int64[B, n, length] for every length that somebody avoids, filled up with -1."""
    lists: dict[int, list[list[Codes]]] = defaultdict(lambda: [[] for _ in avoided])
    for row, one in enumerate(avoided):
        for prefix in one:
            lists[len(prefix)][row].append(prefix)
    found = []
    for length, rows in sorted(lists.items()):
        filled = np.full((len(rows), max(map(len, rows)), length), -1)
        for place, prefixes in zip(filled, rows, strict=True):
            place[: len(prefixes)] = np.array(prefixes, np.int64).reshape(-1, length)
        found.append(torch.from_numpy(filled))
    return found


@cache
def device() -> torch.device:
    """Where models serve: a GPU that the kernels are made for, or else the CPU, which is said once."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.cuda.get_device_capability()
    if found < LEAST_CAPABILITY:
        wanted = ".".join(map(str, LEAST_CAPABILITY))
        log.warning("event=gpu_not_used capability=%d.%d wanted=%s: the search runs on the CPU", *found, wanted)
        return torch.device("cpu")
    return torch.device("cuda")


def products(precision: str, device: torch.device) -> torch.dtype:
    """Type of the weights that a search multiplies with; `"auto"` is the fastest that the device has.

    Raises:
        ValueError: bfloat16 was asked for, and the processor has no unit that multiplies matrices of it.
    """
    has = device.type == "cuda" or available(torch.bfloat16)
    if precision == "bfloat16" and not has:
        raise ValueError("serving.precision: bfloat16: this processor does not multiply matrices of bfloat16 (AMX); choose auto or float32")
    return torch.bfloat16 if has and precision != "float32" else torch.float32


def moved(grm: Grm, device: torch.device, products: torch.dtype) -> Grm:
    """The model where it is to serve: itself, or a copy on a GPU whose decoder has weights of this type."""
    if grm.decoder.start.device.type == device.type:
        return grm
    copy = Grm(grm.config, device)
    copy.decoder.to(products)
    restore(copy, dict(grm.dense_parameters()), grm.tables())
    return copy
