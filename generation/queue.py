"""The queue of wanted videos in Redis, shared by all workers: `generation.demand`'s rule, with leases and with the place in the log.

| key | type | holds |
|---|---|---|
| `sidstream:generation:wanted` | sorted set | key (`<bundle>|<sid>`) by urgency |
| `sidstream:generation:wants` | hash | key -> the first request that asked for it, as JSON |
| `sidstream:generation:first` | hash | key -> when it was first asked for, ms UTC |
| `sidstream:generation:leases` | sorted set | key by when its worker's lease ends, ms UTC |
| `sidstream:generation:failures` | hash | key -> how often its making failed |
| `sidstream:generation:seen` | sorted set | ids of the newest requests by time, so that one read twice counts once |
| `sidstream:generation:offsets` | hash | partition -> offset of the next request to read |
| `sidstream:generation:generated`, `…:refused` | sets | keys of the videos that were made, and that could not be |
| `sidstream:generation:requested` | string | wishes merged |

Requests and the offset after them are written in one step, so the queue itself says how far the log has been read. If Redis loses its last
second, or everything, the offsets go with it and the workers read the log again from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import redis

from generation.demand import MINUTE_MS, Wish, urgency

PREFIX: Final = "sidstream:generation:"
Outcome = Literal["generated", "refused"]
NAMES: Final = ("wanted", "wants", "first", "leases", "failures", "seen", "offsets", "generated", "refused", "requested")
KEYS: Final = [PREFIX + name for name in NAMES]
REMEMBERED: Final = 100_000  # request ids

# ARGV: the batch as JSON {before, after: {partition: offset}, wishes: [[id, key, request, demand, asked, base urgency], …]}, ids to
# remember, milliseconds of a unit of urgency. Answers the number of new wishes, or -1 where the queue has not read as far as the caller
# believes.
MERGE: Final = """
local wanted, wants, first, seen, offsets, requested = KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7], KEYS[10]
local batch = cjson.decode(ARGV[1])
for partition, offset in pairs(batch.before) do
  if tonumber(redis.call('HGET', offsets, partition) or 0) ~= offset then return -1 end
end
local new = 0
for _, wish in ipairs(batch.wishes) do
  local id, key, request, demand, asked, base = unpack(wish)
  if redis.call('ZADD', seen, 'NX', asked, id) == 1 then
    new = new + 1
    local earlier = tonumber(redis.call('HGET', first, key))
    if not earlier then
      redis.call('ZADD', wanted, base, key)
    elseif asked < earlier then
      redis.call('ZINCRBY', wanted, (earlier - asked) / tonumber(ARGV[3]), key)
    end
    if not earlier or asked < earlier then
      redis.call('HSET', first, key, string.format('%.0f', asked))
      redis.call('HSET', wants, key, request)
    end
    redis.call('ZINCRBY', wanted, demand, key)
    redis.call('INCRBY', requested, demand)
  end
end
redis.call('ZREMRANGEBYRANK', seen, 0, -1 - tonumber(ARGV[2]))
for partition, offset in pairs(batch.after) do redis.call('HSET', offsets, partition, string.format('%.0f', offset)) end
return new
"""

CLAIM: Final = """
local from = 0
while true do
  local some = redis.call('ZREVRANGE', KEYS[1], from, from + 31)
  if #some == 0 then return false end
  for _, key in ipairs(some) do
    local lease = redis.call('ZSCORE', KEYS[4], key)
    if not lease or tonumber(lease) <= tonumber(ARGV[1]) then
      redis.call('ZADD', KEYS[4], ARGV[2], key)
      return {key, redis.call('HGET', KEYS[2], key)}
    end
  end
  from = from + 32
end
"""

FINISH: Final = """
redis.call('ZREM', KEYS[4], ARGV[1])
for _, hash in ipairs({KEYS[2], KEYS[3], KEYS[5]}) do redis.call('HDEL', hash, ARGV[1]) end
redis.call('ZREM', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then redis.call('SADD', ARGV[2], ARGV[1]) end
return 1
"""


@dataclass(frozen=True)
class Claim:
    """A video that one worker is to make: its key and the first request that asked for it."""

    key: str
    request: bytes


@dataclass(frozen=True)
class Totals:
    """Wishes merged, videos made, videos that could not be made, SIDs that still wait."""

    requested: int
    generated: int
    refused: int
    pending: int


class DemandQueue:
    """The queue; every call is one atomic step.

    Raises (all methods):
        redis.RedisError: Redis is away.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2)
        self._merge = self._redis.register_script(MERGE)
        self._claim = self._redis.register_script(CLAIM)
        self._finish = self._redis.register_script(FINISH)

    def offsets(self) -> dict[int, int]:
        """Per partition the offset of the next request to read; a partition that is not there has not been read."""
        return {int(partition): int(offset) for partition, offset in self._redis.hgetall(PREFIX + "offsets").items()}

    def merge(self, wishes: Sequence[tuple[Wish, str]], before: Mapping[int, int], after: Mapping[int, int]) -> int | None:
        """Add wishes, each with its request as JSON, and move the offsets of their partitions from `before` to `after`.

        Returns how many wishes are new, or None where the queue has read another part of the log than `before` says; nothing is changed
        then.
        """
        batch = {
            "before": {str(partition): offset for partition, offset in before.items()},
            "after": {str(partition): offset for partition, offset in after.items()},
            "wishes": [[w.request_id, w.key, request, w.demand, w.asked_ms, urgency(0, w.asked_ms)] for w, request in wishes],
        }
        new = int(self._merge(keys=KEYS, args=[json.dumps(batch), REMEMBERED, MINUTE_MS]))
        return new if new >= 0 else None

    def claim(self, now_ms: int, lease_ms: int) -> Claim | None:
        """Take the most urgent SID that nobody works on; None if there is none."""
        found = self._claim(keys=KEYS, args=[now_ms, now_ms + lease_ms])
        return Claim(found[0].decode(), found[1]) if found else None

    def renew(self, claim: Claim, now_ms: int, lease_ms: int) -> None:
        """Say that the work on a claim goes on."""
        self._redis.zadd(PREFIX + "leases", {claim.key: now_ms + lease_ms}, xx=True)

    def release(self, claim: Claim) -> None:
        """Give a claim back unfinished: any worker may take it now."""
        self._redis.zrem(PREFIX + "leases", claim.key)

    def fail(self, claim: Claim, retry_ms: int) -> int:
        """Give a claim back because it failed: nobody takes it before `retry_ms` (ms UTC). Returns how often it has failed."""
        self._redis.zadd(PREFIX + "leases", {claim.key: retry_ms})
        return int(self._redis.hincrby(PREFIX + "failures", claim.key, 1))

    def finish(self, claim: Claim, outcome: Outcome | None = None) -> None:
        """Take a SID off the queue, and count it, once however often it is finished."""
        self._finish(keys=KEYS, args=[claim.key, PREFIX + outcome if outcome else ""])

    def most_wanted(self, count: int) -> list[str]:
        return [key.decode() for key in self._redis.zrevrange(PREFIX + "wanted", 0, count - 1)]

    def totals(self) -> Totals:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(PREFIX + "requested").scard(PREFIX + "generated").scard(PREFIX + "refused").zcard(PREFIX + "wanted")
        return Totals(*(int(count or 0) for count in pipeline.execute()))
