"""The parts of the system on one machine: what each runs, what it needs first, and when it is well. A table, no behaviour."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.local import kafka, redis
from jobs.process import model_store, read_ready
from jobs.settings import ConfigError, Settings

CHECK_S = 3.0  # a server that shares two cores with everything else may take its time to answer
JOB_GRACE_S = 40.0  # a Flink job that is told to stop while its mini cluster still starts hears it only afterwards


def always() -> bool:
    return True


def never() -> bool:
    return False


def nothing() -> None:
    return None


@dataclass(frozen=True)
class Part:
    """One process, or, with `once`, one step that runs to its end before what needs it starts."""

    name: str
    command: Sequence[str]
    needs: Sequence[str] = ()  # names of parts that must be well first, as far as they are wanted at all
    group: str = ""  # another name by which `--only` takes it
    once: bool = False
    healthy: Callable[[], bool] = always  # called while the process lives; not used with `once`
    finished: Callable[[], bool] = never  # with `once`: whether its result is there already
    prepare: Callable[[], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    clean_exits: Collection[int] = (0,)  # exit codes after a SIGTERM
    grace_s: float = 20  # from SIGTERM to SIGKILL
    start_s: float = 300  # until it must be well (a step may take as long as its work does)
    nice: int = 0  # people wait for the server, the server for broker and Redis; the rest has seconds


@dataclass(frozen=True)
class Addresses:
    """Ports of the embedded servers on 127.0.0.1 (0: not embedded)."""

    kafka: int = 0
    controller: int = 0
    redis: int = 0
    http: int = 0


def sidstream(*arguments: str, config: Path | None) -> list[str]:
    """Command line of one of our own processes."""
    return [sys.executable, "-m", "jobs.cli", *arguments, *(["--config", str(config)] if config else [])]


def system(settings: Settings, home: Path, addresses: Addresses, config: Path | None) -> list[Part]:
    """The parts in their order; an embedded server is one only where the configuration names no other.

    What a part `needs` and the configuration provides elsewhere simply is not in the list.
    """
    parts = []
    if settings.kafka.bootstrap is None:
        broker = kafka.Broker(home / "broker", addresses.kafka, addresses.controller, retention_bytes=settings.kafka.retention_bytes)
        client = {"bootstrap.servers": broker.address}
        parts.append(
            Part(
                "broker",
                broker.command(),
                healthy=lambda: kafka.healthy(client, CHECK_S),
                prepare=broker.prepare,
                environment=broker.environment(),
                clean_exits=(0, 143),
            )
        )
    if settings.redis.url is None:
        server = redis.Server(home / "redis", addresses.redis)
        parts.append(Part("redis", server.command(), healthy=lambda: redis.healthy(server.url, CHECK_S), prepare=server.prepare))

    def ours(name: str, *arguments: str, needs: Sequence[str], **options: Any) -> Part:
        options.setdefault("healthy", lambda: bool(read_ready(home, name)))
        return Part(name, sidstream(*arguments, config=config), needs=needs, **options)

    def job_runs(name: str) -> Callable[[], bool]:
        return lambda: flink_job_runs(read_ready(home, name))

    parts += [
        ours("feature-repo", "features", "apply", needs=["redis"], once=True),
        ours("topics", "topics", "create", needs=["broker", "feature-repo"], once=True),  # one topic for each applied view
        ours("sids", "sids", "build", needs=[], once=True, finished=lambda: has_bundle(model_store(settings, home))),
        ours(
            "flink-samples",
            "samples",
            "run",
            needs=["topics"],
            group="flink",
            healthy=job_runs("flink-samples"),
            grace_s=JOB_GRACE_S,
            nice=3,
        ),
        ours(
            "flink-features",
            "features",
            "run",
            needs=["topics", "feature-repo"],
            group="flink",
            healthy=job_runs("flink-features"),
            grace_s=JOB_GRACE_S,
            nice=3,
        ),
        ours("inspector", "inspect", needs=["topics"], group="flink", nice=8),
        ours("writer", "features", "write", needs=["topics", "redis", "feature-repo"], group="flink"),
        ours("trainer", "train", needs=["topics", "sids"], nice=6),
        ours(
            "server",
            "serve",
            needs=["topics", "redis", "feature-repo", "sids"],
            healthy=lambda: answers(f"http://{settings.http.host}:{addresses.http}/readyz"),
        ),
        *(
            ours(f"generator-{n}", "generate", "--worker", str(n), needs=["topics", "redis", "sids"], group="generator", nice=15)
            for n in range(settings.generation.workers)
        ),
    ]
    return parts


def select(parts: Sequence[Part], only: Collection[str]) -> list[Part]:
    """The parts named, by name or group, with the steps that they need; all parts when none is named.

    Raises:
        ConfigError: a name is unknown.
    """
    names = {part.name for part in parts} | {part.group for part in parts if part.group}
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ConfigError(f"no part is called {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    wanted = {part.name for part in parts if not only or part.name in only or part.group in only}
    by_name = {part.name: part for part in parts}
    for part in [by_name[name] for name in wanted]:
        wanted |= {need for need in part.needs if need in by_name and by_name[need].once}
    if "broker" in wanted and "topics" in by_name:
        wanted.add("topics")
    return [part for part in parts if part.name in wanted]


def flink_job_runs(ready: Mapping[str, Any]) -> bool:
    """Whether every job of the mini cluster whose REST address the process reported is RUNNING."""
    rest = ready.get("facts", {}).get("rest")
    if not rest:
        return False
    jobs = fetch(f"{rest}/jobs/overview").get("jobs", [])
    return bool(jobs) and all(job["state"] == "RUNNING" for job in jobs)


def fetch(url: str) -> dict[str, Any]:
    """A JSON object by HTTP; empty when there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            value = json.load(answer)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def has_bundle(store: str) -> bool:
    """Whether the model store names a current bundle of semantic IDs."""
    from model.store import ModelStore

    return ModelStore(store).exists("BUNDLE")
