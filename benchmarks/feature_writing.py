"""Online feature writing: our writer beside Feast's `write_to_online_store` and `push`, the same rows into the same Redis, one run.

    python -m benchmarks.feature_writing [--rows N] [--batch N]

Ours is timed with the decoding of its JSON rows, Feast's without making its data frames. Every side starts on empty keys (its own
project), and afterwards a sample is read from each by the Feast SDK and compared.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd
from redis import Redis

from benchmarks import provenance
from benchmarks.local_redis import running_redis
from features.layout import ViewLayout
from features.repository import connection_string
from features.view import Feature
from features.writer import FeatureWriter, decode

if TYPE_CHECKING:
    from feast import FeatureStore

FEATURES = 15
VIEW, SOURCE = "counters", "counters_source"
NAMES = [f"count_{n}" for n in range(FEATURES)]
LAYOUT = ViewLayout(VIEW, "item_id", tuple(Feature(name, "Int64") for name in NAMES))
START = 1_650_000_000_000


def rows(count: int, seed: int) -> list[dict[str, int]]:
    """Distinct items with counters as they are: mostly small."""
    chance = random.Random(seed)
    return [
        {"item_id": n, "event_timestamp": START + n, **{name: min(int(chance.paretovariate(0.7)), 10**6) for name in NAMES}}
        for n in range(count)
    ]


def store(folder: Path, redis_url: str, project: str) -> FeatureStore:
    """A Feast store with one pushed view of 15 counters."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
    from feast.types import Int64

    config = RepoConfig(
        project=project,
        provider="local",
        registry=str(folder / f"{project}.db"),
        online_store={"type": "redis", "connection_string": connection_string(redis_url)},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    source = PushSource(
        name=SOURCE, batch_source=FileSource(name="log", path=str(folder / "log.parquet"), timestamp_field="event_timestamp")
    )
    schema = [Field(name="item_id", dtype=Int64), *(Field(name=name, dtype=Int64) for name in NAMES)]
    view = FeatureView(name=VIEW, entities=[item], ttl=timedelta(0), schema=schema, source=source)
    feast = FeatureStore(config=config)
    feast.apply([item, view])
    return feast


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=20_000)
    arguments.add_argument("--batch", type=int, default=2000, help="rows a call, on every side")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="result file; default benchmarks/results/feature_writing.json")
    given = arguments.parse_args()
    table = rows(given.rows, given.seed)
    bodies = [msgspec.json.encode(row) for row in table]
    frame = pd.DataFrame(table)
    frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], unit="ms", utc=True)
    starts = range(0, given.rows, given.batch)
    frames = [frame.iloc[start : start + given.batch] for start in starts]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url:
        stores = {name: store(Path(folder), url, name) for name in ("ours", "written", "pushed")}
        writer = FeatureWriter(Redis.from_url(url), "ours", [LAYOUT])

        def ours() -> None:
            for start in starts:
                decoded = [row for body in bodies[start : start + given.batch] if (row := decode(LAYOUT, body)) is not None]
                writer.write({VIEW: decoded})

        def written() -> None:
            for part in frames:
                stores["written"].write_to_online_store(VIEW, df=part)

        def pushed() -> None:
            for part in frames:
                stores["pushed"].push(SOURCE, part)

        for name, action in (("ours", ours), ("written", written), ("pushed", pushed)):
            seconds = timed(action)
            results.append({"side": name, "rows": given.rows, "seconds": round(seconds, 3), "rows_per_s": round(given.rows / seconds)})
        sample = [{"item_id": n} for n in random.Random(given.seed).sample(range(given.rows), min(200, given.rows))]
        read = [stores[name].get_online_features([f"{VIEW}:{n}" for n in NAMES], sample).to_dict() for name in stores]
        if not read[0] == read[1] == read[2] or None in read[0][NAMES[0]]:
            raise SystemExit("the sides wrote different values: no figure")
    labels = {"ours": "FeatureWriter", "written": "Feast write_to_online_store", "pushed": "Feast push"}
    print(f"{given.rows} rows of {FEATURES} features, {given.batch} a call\n{'side':<30}{'rows/s':>10}{'ours is':>10}")
    for result in results:
        result["ours_is_times"] = round(results[0]["rows_per_s"] / result["rows_per_s"], 2)
        print(f"{labels[result['side']]:<30}{result['rows_per_s']:>10}{result['ours_is_times']:>9}x")
    path = provenance.write(
        "feature_writing",
        {"features": FEATURES, "batch": given.batch, "seed": given.seed, "results": results},
        ("feast", "redis", "msgspec"),
        given.out,
    )
    print(path)


if __name__ == "__main__":
    main()
