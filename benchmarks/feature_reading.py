"""Reading the features of one user and 500 candidates: our reader beside Feast's `get_online_features`, one Redis, one run.

    python -m benchmarks.feature_reading [--candidates N] [--rounds N]

Both sides read the same items in turns of 20 rounds, in one process, after `gc.freeze()`; their values are compared before anything is
timed.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

from benchmarks import provenance
from benchmarks.local_redis import running_redis
from features import repository
from features.layout import layout_of
from features.reader import FeatureReader
from features.writer import FeatureWriter, Row

START = 1_650_000_000_000
ITEMS = 7000
BLOCK = 20  # rounds of one side before it is the other's turn


def fill(writer: FeatureWriter, seed: int) -> None:
    """Counters of all items, a history and counters of one user."""
    chance = random.Random(seed)
    for view, layout in writer.layouts.items():
        numbers = sum(feature.type != "Json" for feature in layout.features)
        entities = range(ITEMS) if layout.join_key == "item_id" else range(1)
        entry = b'{"known_at":1650000000000,"ts":1650000000000,"item_id":1234,"play_ms":null,"kinds":["like"]}'
        history = (b"[" + b",".join([entry] * 50) + b"]",)
        rows = [Row(n, START + n, history if not numbers else tuple(chance.randrange(1000) for _ in range(numbers))) for n in entities]
        writer.write({view: rows})


def figures(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1000, (50, 95, 99))
    return {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3), "p99_ms": round(float(p99), 3)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--candidates", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="result file; default benchmarks/results/feature_reading.json")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as url:
        repo = Path(folder) / "feature_repo"
        repository.render(repo, url)
        repository.apply(repo)
        views = {view.name: view for view in repository.registered_views(repo)}
        fill(FeatureWriter(Redis.from_url(url), repository.PROJECT, [layout_of(view) for view in views.values()]), given.seed)
        store, reader = repository.store(repo), FeatureReader(url)
        refs = {name: [f"{name}:{feature.name}" for feature in view.features] for name, view in views.items()}
        chance = random.Random(given.seed)
        asked = [chance.sample(range(ITEMS), given.candidates) for _ in range(given.rounds)]

        theirs = store.get_online_features(refs["item_counters"], [{"item_id": n} for n in asked[0]]).to_dict()
        ours = reader.items(asked[0])
        if any(ours.column(name).tolist() != theirs[name] for name in ours.names):
            raise SystemExit("the sides read different values: no figure")

        actions: dict[str, Callable[[list[int]], Any]] = {
            "items, FeatureReader": reader.items,
            "items, Feast": lambda ids: store.get_online_features(refs["item_counters"], [{"item_id": n} for n in ids]).to_dict(),
            "history, FeatureReader": lambda ids: reader.history(0),
            "history, Feast": lambda ids: store.get_online_features(refs["user_history"], [{"user_id": 0}]).to_dict(),
            "user, FeatureReader": lambda ids: reader.users([0]),
            "user, Feast": lambda ids: store.get_online_features(refs["user_counters"], [{"user_id": 0}]).to_dict(),
        }
        taken: dict[str, list[float]] = {name: [] for name in actions}
        for action in actions.values():
            action(asked[0])
        gc.collect()
        gc.freeze()
        for start in range(0, given.rounds, BLOCK):
            for name, action in actions.items():
                for ids in asked[start : start + BLOCK]:
                    started = time.perf_counter()
                    action(ids)
                    taken[name].append(time.perf_counter() - started)
    results = [{"read": name, **figures(seconds)} for name, seconds in taken.items()]
    print(f"{given.candidates} candidates, {given.rounds} rounds\n{'read':<26}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for result in results:
        print(f"{result['read']:<26}{result['p50_ms']:>10}{result['p95_ms']:>10}{result['p99_ms']:>10}")
    ratios = {
        what: round(figures(taken[f"{what}, Feast"])["p50_ms"] / figures(taken[f"{what}, FeatureReader"])["p50_ms"], 1)
        for what in ("items", "history", "user")
    }
    print("Feast's median over ours: " + ", ".join(f"{what} {ratio}x" for what, ratio in ratios.items()))
    path = provenance.write(
        "feature_reading",
        {"candidates": given.candidates, "rounds": given.rounds, "seed": given.seed, "results": results, "feast_over_ours_p50": ratios},
        ("feast", "redis", "hiredis", "msgspec", "numpy"),
        given.out,
    )
    print(path)


if __name__ == "__main__":
    main()
