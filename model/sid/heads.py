"""From a frozen encoder's states to the two embeddings of a catalogue: pairs are mined, heads are trained on them, and kept.

Heads are kept beside the bundle that was made with them (`heads/<version>.safetensors` in the model store), so that items that are appended
later pass through the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch

from model.sid import cooccurrence, encoder
from model.sid.contrastive import Factor, HeadConfig, Heads, fit
from model.sid.cooccurrence import Pairs
from model.store import ModelStore, StoreError

Vectors = npt.NDArray[np.float32]

STATES = ("content_states", "creative_states")
FOLDER = "heads"


def has_states(catalogue: pa.Table) -> bool:
    """Whether a catalogue brings states: the column `states`, or one for each head, `content_states` and `creative_states`."""
    return "states" in catalogue.column_names or set(STATES) <= set(catalogue.column_names)


def states_of(catalogue: pa.Table) -> tuple[Vectors, Vectors]:
    """States float32[N, d_in] of the content and of the creative head, rows scaled to unit length.

    Raises:
        encoder.CatalogueError: no such column; states of several lengths, not finite, or zero.
    """
    names = STATES if set(STATES) <= set(catalogue.column_names) else ("states", "states")
    if not has_states(catalogue):
        raise encoder.CatalogueError(f"column states: missing; the catalogue has {', '.join(catalogue.column_names)}")
    return encoder.given(catalogue, names[0]), encoder.given(catalogue, names[1])


def mined(catalogue: pa.Table, together: pa.Table | None, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Pairs of rows that belong together, for the content and for the creative head.

    Content: items that Swing finds together in `together`, and those of one product (column `product_id`). Creative: those of one template
    (column `template_id`). Each kind counts as much as the others; an item without any pair is paired with itself, which dropout shows
    twice, differently (SimCSE, Gao et al., 2021).
    """
    items = catalogue.num_rows
    content = [_same(catalogue, "product_id")]
    if together is not None:
        content.append(cooccurrence.swing(encoder.sequences(catalogue, together), items, seed=seed))
    return _joined(content, items), _joined([_same(catalogue, "template_id")], items)


def learn(
    catalogue: pa.Table, together: pa.Table | None, config: HeadConfig, progress: Callable[[int, dict[str, float]], None] | None = None
) -> Heads:
    """Train both heads on a catalogue's states (see states_of) and mined pairs; raises like states_of()."""
    pairs = mined(catalogue, together, config.seed)
    content, creative = states_of(catalogue)
    return fit(Factor(content, pairs[0]), Factor(creative, pairs[1]), config, progress)


def embedded(catalogue: pa.Table, heads: Heads) -> pa.Table:
    """The catalogue with `content` and `creative` in the place of its states.

    Raises:
        encoder.CatalogueError: like states_of(); or states of another length than the heads were trained on.
    """
    states = states_of(catalogue)
    for found, width in zip(states, heads.widths, strict=True):
        if found.shape[1] != width:
            raise encoder.CatalogueError(f"states of {found.shape[1]} numbers: the heads were trained on {width}")
    vectors = heads.embed(*states)
    plain = catalogue.drop_columns([name for name in (*STATES, "states", "content", "creative") if name in catalogue.column_names])
    return plain.append_column("content", _lists(vectors[0])).append_column("creative", _lists(vectors[1]))


def save(heads: Heads, store: ModelStore, version: str) -> None:
    """Keep heads for the bundle of this version."""
    tensors = {name: tensor.contiguous() for name, tensor in heads.state_dict().items()}
    facts = {"config": json.dumps(asdict(heads.config)), "widths": json.dumps(heads.widths)}
    store.write(f"{FOLDER}/{version}.safetensors", safetensors.torch.save(tensors, facts))


def load(store: ModelStore, version: str) -> Heads:
    """The heads that a bundle was made with.

    Raises:
        StoreError: there are none.
    """
    try:
        body = store.read(f"{FOLDER}/{version}.safetensors")
    except StoreError as error:
        raise StoreError(f"bundle {version} was made without heads, so states cannot be appended to it: {error}") from error
    facts: dict[str, Any] = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    widths = json.loads(facts["widths"])
    heads = Heads(widths[0], widths[1], HeadConfig(**json.loads(facts["config"])))
    heads.load_state_dict(safetensors.torch.load(body))
    return heads


def _same(catalogue: pa.Table, column: str) -> Pairs:
    """Pairs of equal values; null equals none."""
    if column not in catalogue.column_names:
        return cooccurrence.same(np.full(catalogue.num_rows, -1))
    codes = pc.fill_null(pc.dictionary_encode(catalogue[column].combine_chunks()).indices, -1)
    return cooccurrence.same(codes.to_numpy(zero_copy_only=False).astype(np.int64))


def _joined(kinds: list[Pairs], items: int) -> Pairs:
    """All pairs, each kind with the same total value, and every item that is in none with itself."""
    kinds = [kind for kind in kinds if len(kind.left)]
    alone = np.setdiff1d(np.arange(items), np.concatenate([np.empty(0, np.int64), *(kind.left for kind in kinds)]))
    # An item alone is drawn as often as an average other one.
    kinds = [Pairs(kind.left, kind.right, kind.value * np.float32((items - len(alone)) / len(kinds) / kind.value.sum())) for kind in kinds]
    kinds.append(Pairs(alone, alone, np.ones(len(alone), np.float32)))
    return Pairs(*(np.concatenate(parts) for parts in zip(*kinds, strict=True)))


def _lists(vectors: Vectors) -> pa.ListArray:
    rows, width = vectors.shape
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(vectors.reshape(-1)))
