"""What is known of a semantic ID that has no video: the attributes of the catalogue's videos that share its codes, or come nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from generation.storyboard import Content, Creative, VideoSpec
from model.sid.bundle import Bundle

NEAREST: Final = 5  # videos asked where none shares the codes


def specify(bundle: Bundle, sid: Sequence[int], metadata: Mapping[str, Any] | None = None, *, seconds: float = 6.0) -> VideoSpec:
    """The spec of a SID's video.

    Args:
        metadata: of the request; `title` and `call_to_action` are shown, if they are short words in letters that our typefaces have.
        seconds: length of the video.

    Raises:
        ValueError: the SID is not one of this bundle.
    """
    content, creative = bundle.embedding_of(sid)
    split = bundle.content_levels
    of_content = _rows(bundle, bundle.sids[:, :split], sid[:split], "content", content)
    of_creative = _rows(bundle, bundle.sids[:, split:], sid[split:], "creative", creative)
    return VideoSpec(
        bundle.version,
        tuple(int(code) for code in sid),
        split,
        Content(
            tag=_commonest(bundle, of_content, "tag"),
            author_id=_commonest(bundle, of_content, "author_id"),
            title=_commonest(bundle, of_content, "title"),
        ),
        Creative(
            music_type=_commonest(bundle, of_creative, "music_type"),
            video_type=_commonest(bundle, of_creative, "video_type"),
            upload_type=_commonest(bundle, of_creative, "upload_type"),
            duration_ms=_commonest(bundle, of_creative, "duration_ms"),
        ),
        seconds=seconds,
        title=_showable(metadata, "title", 60),
        call_to_action=_showable(metadata, "call_to_action", 24),
    )


def _rows(
    bundle: Bundle, codes: npt.NDArray[np.int32], wanted: Sequence[int], column: str, embedding: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Catalogue rows with exactly these codes of one factor; where there are none, those whose embedding comes nearest."""
    same = np.flatnonzero((codes == np.asarray(wanted, np.int32)).all(axis=1))
    if len(same):
        return same
    vectors = np.stack(bundle.catalogue[column].to_numpy(zero_copy_only=False)).astype(np.float32)
    return np.argsort(-(vectors @ embedding), kind="stable")[:NEAREST]


def _commonest(bundle: Bundle, rows: npt.NDArray[np.int64], column: str) -> Any:
    """The commonest known value of a column over some rows, the earliest of equals; None where nothing is known."""
    if column not in bundle.catalogue.column_names:
        return None
    known = [value for value in bundle.catalogue[column].take(rows).to_pylist() if value is not None]
    return Counter(known).most_common(1)[0][0] if known else None


def _showable(metadata: Mapping[str, Any] | None, name: str, longest: int) -> str | None:
    """A text of the metadata that can be set in type; None where there is none."""
    text = (metadata or {}).get(name)
    if not isinstance(text, str):
        return None
    text = " ".join(text.split())
    return text if 0 < len(text) <= longest and text.isprintable() and all(ord(letter) < 256 for letter in text) else None
