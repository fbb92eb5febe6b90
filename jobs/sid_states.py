"""States of a frozen encoder for `sidstream sids`: read from a file, or made by a vision-language model from the frames of each video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from jobs.settings import ConfigError
from model.sid import encoder, heads

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIX = "transformers:"
# Videos whose frames are in memory at a time.
PART = 64


def joined(catalogue: pa.Table, states: pa.Table) -> pa.Table:
    """The catalogue with the state columns of another table, row by item_id; items that only the other table has are left out.

    Raises:
        encoder.CatalogueError: no state column, an item twice, or an item of the catalogue without states.
    """
    if not heads.has_states(states) or "item_id" not in states.column_names:
        raise encoder.CatalogueError(
            f"embeddings need the columns item_id and states (or {' and '.join(heads.STATES)}), found {', '.join(states.column_names)}"
        )
    known, wanted = states["item_id"].to_numpy(), catalogue["item_id"].to_numpy()
    order = np.argsort(known, kind="stable")
    twice = np.flatnonzero(np.diff(known[order]) == 0)
    if len(twice):
        raise encoder.CatalogueError(f"embeddings: item {known[order][twice[0]]} occurs more than once")
    place = np.minimum(np.searchsorted(known[order], wanted), max(len(known) - 1, 0))
    missing = known[order][place] != wanted if len(known) else np.ones(len(wanted), bool)
    if missing.any():
        row = int(missing.argmax())
        raise encoder.CatalogueError(
            f"embeddings: row {row} of the catalogue (item {wanted[row]}) has none, {int(missing.sum())} of {len(wanted)} rows have none"
        )
    rows = states.take(pa.array(order[place]))
    for name in (*heads.STATES, "states"):
        if name in rows.column_names:
            catalogue = catalogue.append_column(name, rows[name].combine_chunks())
    return catalogue


def encoded(catalogue: pa.Table, name: str, folder: Path, device: str) -> pa.Table:
    """The catalogue with the states of both questions to a model, from its column `frames` (list of image files, in order).

    Args:
        name: `transformers:PATH`, the folder of a model and its processor.
        folder: what relative paths of frames start from.

    Raises:
        ConfigError: a name of another form, or a folder that no model can be read from.
        encoder.CatalogueError: no column `frames`, a video without frames, or a frame that is no image; the message names the row.
    """
    if not name.startswith(PREFIX):
        raise ConfigError(f"the encoder {name} is unknown: {PREFIX}PATH is expected, the folder of a model and its processor")
    if "frames" not in catalogue.column_names:
        raise encoder.CatalogueError(f"column frames (list of image files) is what an encoder reads: missing in {catalogue.column_names}")
    from model.sid import vision_language  # here, because only this needs the model library: seconds and 200 MB

    try:
        model = vision_language.VisionLanguageEncoder(Path(name.removeprefix(PREFIX)), device=device)
    except vision_language.EncoderError as error:
        raise ConfigError(str(error)) from error
    files: list[list[str] | None] = catalogue["frames"].to_pylist()
    found: list[list[np.ndarray]] = [[], []]
    with tqdm(total=len(files), desc="states", unit="video", disable=None) as bar:
        for start in range(0, len(files), PART):
            videos = [_frames(row, paths, folder) for row, paths in enumerate(files[start : start + PART], start)]
            for place, prompt in enumerate((vision_language.CONTENT_PROMPT, vision_language.CREATIVE_PROMPT)):
                found[place].append(model.states(videos, prompt))
            bar.update(len(videos))
    for column, parts in zip(heads.STATES, found, strict=True):
        catalogue = catalogue.append_column(column, pa.array(list(np.concatenate(parts))))
    return catalogue.drop_columns(["frames"])


def _frames(row: int, paths: Sequence[str] | None, folder: Path) -> list[Image]:
    from PIL import Image

    if not paths:
        raise encoder.CatalogueError(f"column frames: row {row} has no frames: leave this video out")
    images = []
    for path in paths:
        try:
            images.append(Image.open(folder / path).convert("RGB"))
        except OSError as error:
            raise encoder.CatalogueError(f"column frames: row {row}: {path} cannot be read as an image: {error}") from error
    return images
