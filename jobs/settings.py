"""The one configuration tree: loaded and checked once at the edge, passed down as small parts.

An empty file is the embedded default; every key has a default, an unknown key is an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import ErrorDetails


class ConfigError(Exception):
    """The configuration file cannot be used; the message says which key, why, and what to do."""


LONGEST_S = 999 * 86_400  # Flink reads intervals below 1,000 days


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def empty_is_default(cls, tree: Any) -> Any:
        """A key without a value (all below it commented out, say) is its default."""
        if not isinstance(tree, dict):
            return tree
        return {key: value for key, value in tree.items() if value is not None or key not in cls.model_fields}


class Kafka(Part):
    bootstrap: str | None = Field(
        None, pattern=r"^[^\s,]+:\d+(,[^\s,]+:\d+)*$", description="host:port[,host:port]; null starts an embedded broker"
    )
    security: dict[str, Any] = Field(default_factory=dict, description="librdkafka settings, passed to every client as they are")
    partitions: int = Field(2, ge=1, description="partitions of the event topics")
    retention_ms: int = Field(
        -1, ge=-1, description="retention of the event topics, by record time; -1 = none: a replay's records are years old when they arrive"
    )
    retention_bytes: int = Field(2 * 1024**3, ge=-1, description="retention of each partition of the event topics; -1 = none")


class Redis(Part):
    url: str | None = Field(None, pattern="^(rediss?|unix)://", description="redis://host:port/db; null starts an embedded server")


class Http(Part):
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0 = a free one")


class Samples(Part):
    label_window_s: float = Field(60, gt=0, le=LONGEST_S, description="how long an impression waits for its labels")
    attribution_window_s: float = Field(7 * 86_400, gt=0, le=LONGEST_S, description="how long later labels become corrections")
    disorder_s: float = Field(5, ge=0, le=LONGEST_S, description="bounded disorder of event time")

    @model_validator(mode="after")
    def attribution_holds_the_label_window(self) -> Self:
        if self.attribution_window_s < self.label_window_s:
            raise ValueError(f"attribution_window_s is {self.attribution_window_s:g} (expected ≥ label_window_s, {self.label_window_s:g})")
        return self


class Features(Part):
    disorder_s: float = Field(0.5, ge=0, description="bounded disorder of the feature job; later events count when they arrive")
    history: int = Field(50, ge=1, le=1000, description="interactions kept of each user")
    lifetime_s: float = Field(30 * 86_400, gt=0, description="an impression or history untouched for so long is forgotten by the job")


class Flink(Part):
    checkpoint_ms: int = Field(1000, ge=100)
    heap_mb: int = Field(1024, ge=256, description="heap of each embedded job's JVM")


class Heads(Part):
    dimensions: int = Field(64, ge=2, description="numbers of each embedding")
    gamma1: float = Field(1.0, ge=0, description="weight of the creative head's contrastive loss")
    gamma2: float = Field(10.0, ge=0, description="weight of the orthogonality penalty")
    orthogonality: Literal["dimensions", "items"] = Field(
        "dimensions", description="penalty on the correlation of dimensions, or on the inner product of each item's two embeddings"
    )
    temperature: float = Field(0.05, gt=0)
    batch: int = Field(512, ge=2)
    steps: int = Field(1000, ge=1)


class Sids(Part):
    source: Literal["simulator", "kuairand"] = Field("simulator", description="whose catalogue `sids build` makes semantic IDs for")
    dir: Path | None = Field(None, description="folder of the log's files (kuairand)")
    seed: int = Field(0, description="of the simulated world and of the codebooks")
    content_levels: int = Field(2, ge=1, le=4)
    creative_levels: int = Field(2, ge=1, le=4)
    codes: int = Field(64, ge=2, le=65_536, description="codes per level of the laptop default; 8192 for the reference preset")
    balance: Literal["none", "usage", "exact"] = Field(
        "usage", description="how codebooks shed vectors from crowded codes while they are fitted"
    )
    uniformity: float = Field(0.0, ge=0, le=1, description="centroids nearer than this share of their mean distance are pushed apart")
    fsq_values: int = Field(0, ge=0, le=64, description="values per axis of a last level that is a grid; 0 = clusters")
    smoothing: float = Field(0.0, ge=0, lt=1, description="share that content takes from what is watched together")
    collisions: Literal["separate", "share"] = Field("separate", description="what becomes of different videos with the same semantic ID")
    hash_columns: tuple[str, ...] = Field((), description="columns of the catalogue whose hash is one more level")
    minibatch: Literal["auto", "always", "never"] = Field(
        "auto",
        description="fit codebooks by mini-batches, resumed after a kill; auto: where plain k-means would read 262,144 vectors a turn",
    )
    minibatch_steps: int = Field(600, ge=1, description="batches of 16,384 vectors per level")
    device: str = Field("cpu", description="where mini-batches are fitted")
    heads: Heads = Field(Heads(), description="the two heads that are trained over an encoder's states")


class Model(Part):
    preset: Literal["laptop", "reference"] = "laptop"
    deterministic: bool = Field(False, description="bitwise reproducible training, somewhat slower")
    seed: int = 0
    options: dict[str, bool | int | FiniteFloat] = Field(
        default_factory=dict, description="of `model.grm.GrmConfig` by name, such as `long: 16`; a model of other options starts anew"
    )


class Trainer(Part):
    batch: int = Field(128, ge=1)
    max_wait_ms: int = Field(500, ge=1, description="learn from a partial batch after this long")
    checkpoint_s: float = Field(15, gt=0)
    delayed_feedback: Literal["wait", "fnw", "es_dfm", "defer"] | None = Field(
        None, description="predict conversions, learning labels that come late in this way; null = conversions are not predicted"
    )
    satisfaction: Literal["long_view", "duration"] = Field(
        "long_view", description="the watch that is worth learning: a long view, or one in the best quarter of videos about as long"
    )
    gbpo: float = Field(0, ge=0, description="weight of a policy gradient on what people said of what was served; 0 = cross-entropy alone")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the numbers in the products of a training step; weights and their optimizers stay float32"
    )
    user_weight: float = Field(
        0, ge=0, le=1, description="power of what a person's impressions were worth so far in the weight of their samples; 0 = all alike"
    )
    pending_conversions: int = Field(50_000, ge=1, description="impressions that are remembered until their attribution window ends")
    placement: Literal["row_wise", "table_wise"] = Field(
        "row_wise", description="what each process of torchrun has: a share of every embedding table, or some of the tables"
    )


class Publish(Part):
    every_s: float = Field(10, gt=0)


class Serving(Part):
    beam_width: int = Field(32, ge=1, description="of the full search; under load narrower ones take its place, down to 8")
    least_agreement: float = Field(
        0.9, ge=0, le=1, description="share of the full search's ten best that a narrower one has to find to be used"
    )
    shadow_share: float = Field(0.02, ge=0, lt=1, description="of the time, what measuring that may take; 0 = never measured")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the weights in a search; auto = bfloat16 on a GPU and on processors that multiply matrices of it, else float32",
    )
    deadline_ms: int = Field(150, ge=1)
    max_batch: int = Field(16, ge=1)
    log_impressions: bool = Field(True, description="false in a replay, whose impressions come from the log")


class Generation(Part):
    workers: int = Field(1, ge=0)
    seconds: float = Field(6, ge=5, le=10)


class Settings(Part):
    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    http: Http = Http()
    samples: Samples = Samples()
    features: Features = Features()
    flink: Flink = Flink()
    sids: Sids = Sids()
    model: Model = Model()
    trainer: Trainer = Trainer()
    publish: Publish = Publish()
    serving: Serving = Serving()
    generation: Generation = Generation()
    model_store: str | None = Field(None, description="any fsspec URL; null = a folder in the home")


def load(path: Path | None) -> Settings:
    """Read a configuration file.

    Raises:
        ConfigError: the file is missing, is not YAML, or has an unknown or impossible key; the message names file and key.
    """
    if path is None:
        return Settings()
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(map(said, error.errors()))) from error


def said(error: ErrorDetails) -> str:
    """What is wrong with a key, and what it may be."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such key; there are {', '.join(keys(error['loc'][:-1]))}"
    if error["type"] == "model_type":
        return f"{where}: expected keys and values: {', '.join(keys(error['loc']))} (found {error['input']!r})"
    if error["type"] == "value_error":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    return f"{where}: {error['msg']} (found {error['input']!r})"


def keys(place: Sequence[int | str]) -> list[str]:
    """Keys that the file may have at a place of the tree."""
    part: type[BaseModel] = Settings
    for key in place:
        inner = part.model_fields[str(key)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)  # only a part has keys below it
        part = inner
    return list(part.model_fields)


def home() -> Path:
    """Folder of data, logs and `state.json`: `SIDSTREAM_HOME`, by default `var/` in the working directory."""
    return Path(os.environ.get("SIDSTREAM_HOME", "var")).resolve()
