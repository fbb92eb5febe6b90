"""Sizes of the generative recommendation model: `laptop` for two cores, `reference` for a GPU.

Words of the lazy decoder (OneRec-V2, arXiv 2508.20900): the context is projected once to `context_layers` (L_kv) chunks of
`context_splits` (S_kv, 1 = values are the keys) times `context_groups` (G_kv) times `d_head`; decoder layer *i* reads chunk
`i * L_kv // layers`. One of each costs no loss there and makes the shared tensor as small as one head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class GrmConfig:
    """Shape of a model; everything that another process needs to build it again.

    Attributes:
        codes: vocabulary of each SID level.
        events: history events read per sample, newest first (one video may have several).
        history: videos kept of them.
        content_levels: levels of the SID that are content; the others are creative.
        followers: SIDs remembered of what people watched after a video, per video.
        managed: rows of users and videos by managed collision instead of hashing; see `model.grm.managed`.
        lazy_trunk: first layers that do not read the code before (LazyAR, GR4AD, arXiv 2602.22732): they run once for all levels and beams;
            0 = ordinary autoregression. `mtp`: what predicting every code from the trunk alone adds to the loss then.
        long: clusters (first content codes) of the videos older than those of `history` that join the context, each as its newest video and
            how many it holds; 0 = none. `cross`: authors of all videos read that join it with how often they were watched and liked, hashed
            to `author_rows`; 0 = none. `long_events`: history events read for both beyond `events`. See `model.grm.groups`.
        thinking: clusters of a level's codes, of which a lazy trunk, or the thought before the code, learns to tell the target's (S²GR,
            arXiv 2601.18664); 0 = it does not. See `model.grm.thinking`.
        thinking_tokens: a thought of the decoder's own is read before every code (S²GR): two passes a level instead of one.
        thinking_goal: λ, what it adds to the loss that the first thought is not where an auxiliary decoder expects the whole SID, which is
            then taught too; 0 = there is none. See `model.grm.goal`.
        experts: feed-forward networks of `ffn` in every layer, of which a position uses `experts_active`; 0 = one, for all.
        value_buckets: of the value of an impression, which the decoder predicts as one more token behind the codes (GR4AD, VSL); 0 = none.
            `value_weight`: λ_e, what its cross-entropy adds to that of the codes. `value_rank`: β, where a search orders what it found by
            log p + β log E[v]; 0 = by log p.
        sparse_lr: rate of the fused row-wise Adagrad of the embedding tables; `prefix_lr` that of the prior on prefixes.
    """

    codes: tuple[int, ...]
    d_model: int
    layers: int
    heads: int
    self_groups: int
    ffn: int
    context_hidden: int
    d_sparse: int
    user_rows: int
    item_rows: int
    prefix_rows: int
    d_prefix: int
    events: int = 50
    history: int = 32
    context_layers: int = 1
    context_splits: int = 1
    context_groups: int = 1
    content_levels: int = 2
    followers: int = 16
    sparse_lr: float = 0.05
    prefix_lr: float = 0.2
    seed: int = 0
    managed: bool = False
    lazy_trunk: int = 0
    mtp: float = 0.1
    experts: int = 0
    experts_active: int = 2
    long: int = 0
    long_events: int = 0
    cross: int = 0
    author_rows: int = 1 << 14
    thinking: int = 0
    thinking_tokens: bool = False
    thinking_goal: float = 0.0
    value_buckets: int = 0
    value_weight: float = 1.0
    value_rank: float = 0.0

    def __post_init__(self) -> None:
        if not self.codes or min(self.codes) < 2:
            raise ValueError(f"codes is {self.codes}: expected at least one level of at least two codes")
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of heads {self.heads}")
        if self.heads % self.self_groups or self.heads % self.context_groups:
            raise ValueError(
                f"heads {self.heads} is not a multiple of self_groups {self.self_groups} and context_groups {self.context_groups}"
            )
        if self.experts and not 0 < self.experts_active <= self.experts:
            raise ValueError(f"experts_active is {self.experts_active}: expected 1 to the {self.experts} experts")
        if not 0 <= self.lazy_trunk < self.layers:
            raise ValueError(f"lazy_trunk is {self.lazy_trunk}: expected at least 0 and fewer than the {self.layers} layers")
        if min(self.long, self.cross, self.long_events) < 0:
            raise ValueError(f"long is {self.long}, cross {self.cross}, long_events {self.long_events}: expected none below 0")
        if self.long_events and not (self.long or self.cross):
            raise ValueError(f"long_events is {self.long_events}: nothing reads them, long and cross are 0")
        if self.thinking_tokens and self.lazy_trunk:
            raise ValueError(f"thinking_tokens with a lazy_trunk of {self.lazy_trunk}: its states take the place of thoughts, choose one")
        if self.thinking and not ((self.lazy_trunk or self.thinking_tokens) and 0 < self.thinking <= min(self.codes)):
            raise ValueError(
                f"thinking is {self.thinking}: expected a lazy_trunk or thinking_tokens, and no more clusters than a level has codes"
            )
        if self.thinking_goal < 0 or (self.thinking_goal and not self.thinking_tokens):
            raise ValueError(f"thinking_goal is {self.thinking_goal}: expected a weight ≥ 0, and thinking_tokens where it is above")
        if self.value_buckets < 0 or self.value_buckets == 1 or self.value_weight < 0:
            raise ValueError(
                f"value_buckets is {self.value_buckets}, value_weight {self.value_weight}: expected 0 or at least 2, and a weight ≥ 0"
            )
        if self.value_rank and not (self.value_buckets and self.value_rank > 0):
            raise ValueError(f"value_rank is {self.value_rank}: expected at least 0, and value_buckets where it is above")
        if self.context_splits not in (1, 2):
            raise ValueError(f"context_splits is {self.context_splits}: expected 1 (values are the keys) or 2")

    @property
    def levels(self) -> int:
        return len(self.codes)

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many there are of what the decoder predicts at each position: codes of every level, then buckets of value if it does."""
        return (*self.codes, self.value_buckets) if self.value_buckets else self.codes

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def d_context(self) -> int:
        """Width of the one projection of the context."""
        return self.context_layers * self.context_splits * self.context_groups * self.d_head

    def to_json(self) -> dict[str, Any]:
        """Options that are not taken are left out: a model without them is the same model that it was before there were any."""
        tree = {**asdict(self), "codes": list(self.codes)}
        return {name: value for name, value in tree.items() if name not in OPTIONS or value != OPTIONS[name]}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> GrmConfig:
        return cls(**{**tree, "codes": tuple(tree["codes"])})


_TAKEN_OR_NOT = {
    "managed",
    "lazy_trunk",
    "mtp",
    "experts",
    "experts_active",
    "long",
    "long_events",
    "cross",
    "author_rows",
    "thinking",
    "thinking_tokens",
    "thinking_goal",
    "value_buckets",
    "value_weight",
    "value_rank",
}
OPTIONS: dict[str, Any] = {field.name: field.default for field in fields(GrmConfig) if field.name in _TAKEN_OR_NOT}

PRESETS: dict[str, GrmConfig] = {
    "laptop": GrmConfig(
        codes=(64, 64, 64, 64),
        d_model=256,
        layers=2,
        heads=4,
        self_groups=1,
        ffn=1024,
        context_hidden=256,
        d_sparse=32,
        user_rows=1 << 16,
        item_rows=1 << 16,
        prefix_rows=1 << 16,
        d_prefix=64,
    ),
    "reference": GrmConfig(
        codes=(8192, 8192, 8192, 8192),
        d_model=768,
        layers=7,
        heads=12,
        self_groups=4,
        ffn=3072,
        context_hidden=768,
        d_sparse=64,
        user_rows=1 << 20,
        item_rows=1 << 20,
        prefix_rows=1 << 20,
        d_prefix=64,
        events=512,
        history=512,
    ),
}


def preset(name: str, codes: Sequence[int], **changes: Any) -> GrmConfig:
    """A preset for the codebooks of a bundle.

    Raises:
        KeyError: no such preset.
    """
    return replace(PRESETS[name], codes=tuple(codes), **changes)
