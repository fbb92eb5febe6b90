"""An open load on `/recommend`: requests at random times that do not wait for each other's answers, as people's do not.

    python -m benchmarks.open_load URL --rate 10 --seconds 30

Prints one JSON object. A process of its own, so that the client's work does not slow the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import httpx


async def load(url: str, rate: float, seconds: float, users: int, count: int, seed: int) -> dict[str, Any]:
    """Latencies in ms as the client sees them, and what was degraded."""
    chance = random.Random(seed)
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()

    async with httpx.AsyncClient(base_url=url, timeout=10, limits=httpx.Limits(max_keepalive_connections=64)) as http:

        async def ask(user: int) -> None:
            began = time.perf_counter()
            answer = await http.post("/recommend", json={"user_id": user, "scene": "home", "count": count})
            latencies.append((time.perf_counter() - began) * 1000)
            outcomes[str(answer.status_code)] += 1
            if answer.status_code == 200 and (degraded := answer.json()["degraded"]):
                reasons[degraded.partition(":")[0]] += 1

        await asyncio.gather(*(ask(user) for user in range(8)))  # connections, and whatever comes first
        for measured in (latencies, outcomes, reasons):
            measured.clear()
        began, tasks = time.perf_counter(), []
        at = 0.0
        while (at := at + chance.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(chance.randrange(users))))
        await asyncio.gather(*tasks)
    ordered = sorted(latencies)
    quantiles = {f"p{q}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 1) for q in (50, 95, 99)}
    return {
        "rate": rate,
        "requests": len(ordered),
        **quantiles,
        "degraded": sum(reasons.values()),
        "reasons": reasons,
        "statuses": outcomes,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url")
    arguments.add_argument("--rate", type=float, default=10, help="requests a second")
    arguments.add_argument("--seconds", type=float, default=30)
    arguments.add_argument("--users", type=int, default=500)
    arguments.add_argument("--count", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    print(json.dumps(asyncio.run(load(given.url, given.rate, given.seconds, given.users, given.count, given.seed))))


if __name__ == "__main__":
    main()
