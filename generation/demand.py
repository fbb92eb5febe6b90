"""Demand for videos that do not exist: merged by SID, the most wanted first, shared by all workers, in Redis.

| key | type | holds |
|---|---|---|
| `sidstream:generation:wanted` | sorted set | `<bundle>|<sid>` by urgency |
| `sidstream:generation:requests` | hash | `<bundle>|<sid>` -> the first request that asked for it, as JSON |
| `sidstream:generation:leases` | sorted set | `<bundle>|<sid>` by when its worker's lease ends, ms UTC |
| `sidstream:generation:seen` | sorted set | ids of the newest requests, so that one read twice counts once |
| `sidstream:generation:totals` | hash | `requested` wishes merged, `generated` videos made |

Urgency is the number of wishes plus one for every minute that the first of them has waited, so that nothing starves. Both are fixed
numbers relative to a common origin, so one sorted set keeps the order as time goes by. A worker holds a lease while it makes a video;
the lease of a worker that died runs out and another worker takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import redis

PREFIX: Final = "sidstream:generation:"
KEYS: Final = [PREFIX + name for name in ("wanted", "requests", "leases", "seen", "totals")]
REMEMBERED: Final = 100_000
ORIGIN_MS: Final = 4_102_444_800_000  # 2100-01-01: waiting since earlier is more urgent, and urgencies stay positive
MINUTE_MS: Final = 60_000

MERGE: Final = """
if redis.call('ZADD', KEYS[4], 'NX', ARGV[5], ARGV[1]) == 0 then return 0 end
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - tonumber(ARGV[7]))
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 1 then redis.call('ZADD', KEYS[1], ARGV[6], ARGV[2]) end
redis.call('ZINCRBY', KEYS[1], ARGV[4], ARGV[2])
redis.call('HINCRBY', KEYS[5], 'requested', ARGV[4])
return 1
"""

CLAIM: Final = """
local first = 0
while true do
  local some = redis.call('ZREVRANGE', KEYS[1], first, first + 31)
  if #some == 0 then return false end
  for _, wanted in ipairs(some) do
    local lease = redis.call('ZSCORE', KEYS[3], wanted)
    if not lease or tonumber(lease) <= tonumber(ARGV[1]) then
      redis.call('ZADD', KEYS[3], ARGV[2], wanted)
      return {wanted, redis.call('HGET', KEYS[2], wanted)}
    end
  end
  first = first + 32
end
"""

FINISH: Final = """
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[5], 'generated', ARGV[2]) end
return 1
"""


@dataclass(frozen=True)
class Claim:
    """A video that one worker is to make: its key in the queue and the first request that asked for it."""

    key: str
    request: bytes


@dataclass(frozen=True)
class Totals:
    """Wishes merged, videos made, SIDs that still wait."""

    requested: int
    generated: int
    pending: int


def key_of(bundle_version: str, sid: list[int] | tuple[int, ...]) -> str:
    return f"{bundle_version}|{'.'.join(map(str, sid))}"


class DemandQueue:
    """The queue in Redis; every call is one atomic script.

    Raises (all methods):
        redis.RedisError: Redis is away.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(redis_url)
        self._merge = self._redis.register_script(MERGE)
        self._claim = self._redis.register_script(CLAIM)
        self._finish = self._redis.register_script(FINISH)

    def merge(self, request_id: str, key: str, request: bytes, demand: int, now_ms: int) -> bool:
        """Add a request's wishes; False if this request was merged before."""
        base = (ORIGIN_MS - now_ms) / MINUTE_MS
        return bool(self._merge(keys=KEYS, args=[request_id, key, request, demand, now_ms, base, REMEMBERED]))

    def claim(self, now_ms: int, lease_ms: int) -> Claim | None:
        """Take the most urgent SID that nobody works on; None if there is none."""
        found = self._claim(keys=KEYS, args=[now_ms, now_ms + lease_ms])
        return Claim(found[0].decode(), found[1]) if found else None

    def release(self, claim: Claim) -> None:
        """Give a claim back unfinished."""
        self._redis.zrem(KEYS[2], claim.key)

    def finish(self, claim: Claim, *, generated: bool = True) -> None:
        """Take a SID off the queue: its video exists now."""
        self._finish(keys=KEYS, args=[claim.key, int(generated)])

    def most_wanted(self, count: int) -> list[str]:
        return [key.decode() for key in self._redis.zrevrange(KEYS[0], 0, count - 1)]

    def totals(self) -> Totals:
        requested, generated = self._redis.hmget(KEYS[4], "requested", "generated")
        return Totals(int(requested or 0), int(generated or 0), int(self._redis.zcard(KEYS[0])))
