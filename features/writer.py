"""Final feature values into Redis: batches, pipelined, atomic per entity, an older value never over a newer one.

Each entity is one script call: compare the stored event timestamp with the new one and set the fields, in one step, so writers may be
restarted, run twice, or read the topics again. A row with an equal timestamp is written: it is the same row, or, where several events of
an entity share a millisecond, the one that has seen more of them.

The next offsets to read are kept in Redis behind the values they stand for. If Redis loses its data it loses the offsets too, and the
topics are read again from their beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import NoScriptError

from features.layout import ViewLayout, layouts_key, offsets_key, timestamp, written_offsets

# KEYS[1] entity hash; ARGV[1] timestamp field, ARGV[2] its new value (protobuf Timestamp), then fields and values in turn.
# Doubles hold neither 64-bit varints nor nanoseconds since 1970, so seconds and nanoseconds are compared apart.
UPSERT = """
local function parts(encoded)
  local found, position = {[8] = 0, [16] = 0}, 1
  while position <= #encoded do
    local tag, value, scale, byte = string.byte(encoded, position), 0, 1, 0
    repeat
      position = position + 1
      byte = string.byte(encoded, position)
      value = value + (byte % 128) * scale
      scale = scale * 128
    until byte < 128
    found[tag] = value
    position = position + 1
  end
  return found[8], found[16]
end
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored and stored ~= ARGV[2] then
  local s, n = parts(stored)
  local new_s, new_n = parts(ARGV[2])
  if new_s < s or (new_s == s and new_n < n) then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""

# KEYS[1] packed copy; ARGV[1] its new value, which begins with the timestamp.
UPSERT_PACKED = """
local stored = redis.call('GET', KEYS[1])
if stored and struct.unpack('>i8', stored) > struct.unpack('>i8', ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""


class RowError(ValueError):
    """A message of a feature topic that is no row of its view."""


@dataclass(frozen=True, slots=True)
class Row:
    """Final values of one entity: `event_timestamp` in ms, values in the order of the view's features."""

    entity: int
    event_timestamp: int
    values: tuple[Any, ...]


def decode(layout: ViewLayout, body: bytes) -> Row | None:
    """A message of `features.<view>`; None for the row of a heartbeat, which only carries time.

    Raises:
        RowError: it is no such row.
    """
    try:
        decoded = msgspec.json.decode(body, type=layout.row)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RowError(f"features.{layout.view}: {error}") from error
    entity, event_timestamp, *values = msgspec.structs.astuple(decoded)
    if layout.join_key == "user_id" and entity < 0:
        return None
    return Row(entity, event_timestamp, tuple(values))


def newest(rows: Iterable[Row]) -> list[Row]:
    """One row per entity, the newest; of equal timestamps the last."""
    found: dict[int, Row] = {}
    for row in rows:
        held = found.get(row.entity)
        if held is None or row.event_timestamp >= held.event_timestamp:
            found[row.entity] = row
    return list(found.values())


@dataclass(frozen=True)
class Written:
    """What became of a batch: rows given, rows set, rows older than what was there, rows another row of the batch replaced."""

    rows: int = 0
    set: int = 0
    stale: int = 0
    replaced: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.rows + other.rows, self.set + other.set, self.stale + other.stale, self.replaced + other.replaced)


class FeatureWriter:
    """Writes rows of feature views; one call is one round trip."""

    def __init__(self, client: Redis, project: str, layouts: Sequence[ViewLayout]) -> None:
        self._redis: Any = client  # the stubs of redis-py know text keys only
        self._project = project
        self.layouts = {layout.view: layout for layout in layouts}
        self.prepare()

    def prepare(self) -> None:
        """Load the scripts and describe the layouts; again where Redis has lost them."""
        self._upsert = self._redis.script_load(UPSERT)
        self._upsert_packed = self._redis.script_load(UPSERT_PACKED)
        described = {name: msgspec.json.encode(layout) for name, layout in self.layouts.items()}
        if described:
            self._redis.hset(layouts_key(self._project), mapping=described)

    def write(self, batches: Mapping[str, Sequence[Row]], offsets: Mapping[str, int] | None = None) -> Written:
        """Write rows by view, then the next offsets (by `topic:partition`) that they bring the online store to.

        Raises:
            redis.RedisError: nothing is known of the batch; write it again.
        """
        kept = {view: newest(rows) for view, rows in batches.items()}
        try:
            return self._execute(batches, kept, offsets)
        except NoScriptError:  # Redis was restarted without its script cache
            self.prepare()
            return self._execute(batches, kept, offsets)

    def _execute(self, batches: Mapping[str, Sequence[Row]], kept: Mapping[str, list[Row]], offsets: Mapping[str, int] | None) -> Written:
        pipe = self._redis.pipeline(transaction=False)
        hashes = 0
        for view, rows in kept.items():
            layout, project = self.layouts[view], self._project
            for row in rows:
                stamp = timestamp(row.event_timestamp)
                key = layout.key(project, row.entity)
                pipe.evalsha(self._upsert, 1, key, layout.timestamp_field, stamp, *layout.encode(row.entity, row.values))
            hashes += len(rows)
        for view, rows in kept.items():
            layout = self.layouts[view]
            if layout.packed:
                head = layout.packed_head(self._project)
                for row in rows:
                    packed = layout.pack(row.event_timestamp, row.values)
                    pipe.evalsha(self._upsert_packed, 1, f"{head}{row.entity}", packed)
        results = pipe.execute()
        if offsets:
            # Behind the values and in a trip of its own: offsets that ran ahead of lost values would hide the loss.
            self._redis.hset(offsets_key(self._project), mapping=dict(offsets))
        given = sum(map(len, batches.values()))
        done = sum(results[:hashes])
        return Written(given, done, hashes - done, given - hashes)

    def offsets(self) -> dict[str, int]:
        """The next offset to read by `topic:partition`; empty where nothing was written yet."""
        return written_offsets(self._redis, self._project)
