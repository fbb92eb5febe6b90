"""The SID cache: which video answers a semantic ID, in Redis, one set of keys per bundle.

Keys of a bundle share one hash tag, so that they live on one node of a cluster and one script reads a whole beam in one round trip:

| key | type | holds |
|---|---|---|
| `sidstream:{B}:sids` | hash | SID text -> item ids, newest first, comma separated |
| `sidstream:{B}:videos` | hash | item id -> `CachedVideo` as JSON |
| `sidstream:{B}:content:<content codes>` | sorted set | item id by how well it does now: the creatives of one content |
| `sidstream:{B}:seeded` | string | how many videos of the catalogue were put |
| `sidstream:{B}:content_levels` | string | how many levels of its SIDs are content |
| `sidstream:popular`, `sidstream:popular:<scene>` | set, sorted set | the scenes, and what is popular in each |

`B` is the bundle's version; SID text is the codes joined by dots.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import redis

from streaming import records

Codes = tuple[int, ...]

VIDEOS_PER_ANSWER: Final = 4  # of one SID or one content: enough to step around what the person saw or excluded

# KEYS: sids, videos. ARGV: prefix of the content sets, videos per answer, n, n SIDs, n numbers of contents (from 1), the contents.
# Answers {per SID its videos, per content its best videos}; a content is read only if one of its SIDs has no video.
LOOKUP: Final = """
local n = tonumber(ARGV[3])
local most = tonumber(ARGV[2])
local exact, content, wanted = {}, {}, {}
for i = 1, n do
  local found = {}
  local ids = redis.call('HGET', KEYS[1], ARGV[3 + i])
  if ids then
    local fields = {}
    for id in string.gmatch(ids, '[^,]+') do
      fields[#fields + 1] = id
      if #fields == most then break end
    end
    for _, video in ipairs(redis.call('HMGET', KEYS[2], unpack(fields))) do
      if video then found[#found + 1] = video end
    end
  end
  exact[i] = found
  if #found == 0 then wanted[tonumber(ARGV[3 + n + i])] = true end
end
for j = 1, #ARGV - 3 - 2 * n do
  local found = {}
  if wanted[j] then
    local ids = redis.call('ZREVRANGE', ARGV[1] .. ARGV[3 + 2 * n + j], 0, most - 1)
    if #ids > 0 then
      for _, video in ipairs(redis.call('HMGET', KEYS[2], unpack(ids))) do
        if video then found[#found + 1] = video end
      end
    end
  end
  content[j] = found
end
return {exact, content}
"""

# KEYS: sids, videos. ARGV: prefix of the content sets, then per video: SID, content, item id, JSON, rating.
# An item that is there already is left alone.
PUT: Final = """
local added = 0
for i = 2, #ARGV, 5 do
  local sid, content, id, video, rating = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  added = added + redis.call('HSETNX', KEYS[2], id, video)
  local ids = redis.call('HGET', KEYS[1], sid)
  if not ids then
    redis.call('HSET', KEYS[1], sid, id)
  elseif not string.find(',' .. ids .. ',', ',' .. id .. ',', 1, true) then
    redis.call('HSET', KEYS[1], sid, id .. ',' .. ids)
  end
  redis.call('ZADD', ARGV[1] .. content, 'NX', rating, id)
end
return added
"""


class CachedVideo(msgspec.Struct, frozen=True):
    """A video that can be served now; `put_ts` in ms UTC is when it entered the cache."""

    item_id: int
    sid: Codes
    uri: str
    duration_ms: int
    generated: bool
    put_ts: int

    def age_ms(self, now_ms: int) -> int:
        """How long the video has been in the cache."""
        return max(0, now_ms - self.put_ts)


@dataclass(frozen=True)
class Lookup:
    """What the cache has for one SID: its own videos, newest first, or, where there is none, those of its content, best first."""

    sid: Codes
    exact: tuple[CachedVideo, ...] = ()
    content: tuple[CachedVideo, ...] = ()


class Catalogue(Protocol):
    """The part of a bundle that the cache is seeded from; `sids` is int32[N, L], row for row with `item_ids` int64[N] and the table."""

    @property
    def version(self) -> str: ...
    @property
    def content_levels(self) -> int: ...
    @property
    def item_ids(self) -> Any: ...
    @property
    def sids(self) -> Any: ...
    @property
    def catalogue(self) -> Any: ...


class CacheGone(Exception):
    """Redis did not answer in time."""


def sid_text(sid: Sequence[int]) -> str:
    """Codes joined by dots: the SID as keys and pages write it."""
    return ".".join(map(str, sid))


def generated_video(video: records.Video, now_ms: int) -> CachedVideo:
    """A generated video as the cache holds it."""
    return CachedVideo(video.item_id, tuple(video.sid), video.uri, video.duration_ms, True, now_ms)


def catalogue_videos(bundle: Catalogue, now_ms: int) -> list[CachedVideo]:
    """A bundle's own videos. They have no file here, so their address is that of the picture that stands for them."""
    durations = bundle.catalogue.column("duration_ms").to_pylist()
    return [
        CachedVideo(int(item), tuple(map(int, sid)), f"/posters/{item}.svg", int(duration or 0), False, now_ms)
        for item, sid, duration in zip(bundle.item_ids.tolist(), bundle.sids.tolist(), durations, strict=True)
    ]


class SidCache:
    """The SID cache in Redis; every call is one round trip, or raises `CacheGone`.

    After a failure the cache is not asked again for `rest_s` seconds, so that a dead Redis costs one time-out, not one per request.
    """

    def __init__(self, redis_url: str, *, timeout_s: float = 0.25, rest_s: float = 1.0) -> None:
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._lookup = self._redis.register_script(LOOKUP)
        self._put = self._redis.register_script(PUT)
        self._rest_s = rest_s
        self._resting_until = 0.0
        self._content_levels: dict[str, int] = {}

    @property
    def resting(self) -> bool:
        """Whether Redis failed a moment ago and is left alone."""
        return time.monotonic() < self._resting_until

    def lookup(self, bundle: str, sids: Sequence[Codes]) -> list[Lookup]:
        """The videos of SIDs and of their contents, for a whole batch of beams in one round trip.

        Raises:
            CacheGone: Redis is away or late.
        """
        if not sids:
            return []
        levels = self._levels(bundle, sids[0])
        contents: dict[str, int] = {}
        numbers = [contents.setdefault(sid_text(sid[:levels]), len(contents) + 1) for sid in sids]
        arguments = [_content_prefix(bundle), VIDEOS_PER_ANSWER, len(sids), *map(sid_text, sids), *numbers, *contents]
        exact, content = self._call(self._lookup, keys=[_key(bundle, "sids"), _key(bundle, "videos")], args=arguments)
        best = [_decode_all(found) for found in content]
        return [
            Lookup(sid, videos, () if videos else best[number - 1])
            for sid, videos, number in zip(sids, map(_decode_all, exact), numbers, strict=True)
        ]

    def put(self, video: records.Video, *, now_ms: int | None = None) -> bool:
        """Put a generated video; answers whether it is new. Putting one twice changes nothing."""
        # Its scores are measurements of the file, not of how well it does: like a catalogue's video it begins at 0.
        return self._put_all(video.bundle_version, [(generated_video(video, _now_ms() if now_ms is None else now_ms), 0.0)]) > 0

    def seed(self, bundle: Catalogue, *, now_ms: int | None = None, chunk: int = 500) -> int:
        """Put the catalogue of a bundle unless that was done; answers how many videos were new."""
        marker = _key(bundle.version, "seeded")
        videos = catalogue_videos(bundle, _now_ms() if now_ms is None else now_ms)
        if self._call(self._redis.get, marker) == str(len(videos)).encode():
            return 0
        added = self.restore(bundle.version, videos, bundle.content_levels, chunk=chunk)
        self._call(self._redis.set, marker, len(videos))
        return added

    def restore(self, bundle: str, videos: Sequence[CachedVideo], content_levels: int, *, chunk: int = 500) -> int:
        """Put videos back into a Redis that lost them; answers how many."""
        self._call(self._redis.set, _key(bundle, "content_levels"), content_levels)
        return sum(
            self._put_all(bundle, [(video, 0.0) for video in videos[start : start + chunk]]) for start in range(0, len(videos), chunk)
        )

    def rate(self, bundle: str, ratings: Mapping[CachedVideo, float]) -> None:
        """Say how well videos do now; the best one answers for its content."""
        if not ratings:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for video, rating in ratings.items():
            pipeline.zadd(
                _content_prefix(bundle) + sid_text(video.sid[: self._levels(bundle, video.sid)]), {str(video.item_id): rating}, xx=True
            )
        self._call(pipeline.execute)

    def count(self, bundle: str) -> int:
        """How many videos the bundle has."""
        return int(self._call(self._redis.hlen, _key(bundle, "videos")))

    def videos(self, bundle: str) -> list[CachedVideo]:
        """Every video of the bundle."""
        return list(_decode_all(self._call(self._redis.hvals, _key(bundle, "videos"))))

    def save_popular(self, scenes: Mapping[str, Mapping[int, float]]) -> None:
        """Keep what is popular by scene, for servers that start later: `sidstream:popular:<scene>`, item id by score."""
        pipeline = self._redis.pipeline(transaction=True)
        for scene, scores in scenes.items():
            key = f"sidstream:popular:{scene}"
            pipeline.delete(key)
            if scores:
                pipeline.zadd(key, {str(item): score for item, score in scores.items()})
            pipeline.sadd("sidstream:popular", scene)
        self._call(pipeline.execute)

    def load_popular(self) -> dict[str, dict[int, float]]:
        """What `save_popular` kept."""
        scenes = [scene.decode() for scene in self._call(self._redis.smembers, "sidstream:popular")]
        pipeline = self._redis.pipeline(transaction=False)
        for scene in scenes:
            pipeline.zrange(f"sidstream:popular:{scene}", 0, -1, withscores=True)
        answers = self._call(pipeline.execute)
        return {scene: {int(item): score for item, score in answer} for scene, answer in zip(scenes, answers, strict=True)}

    def alive(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(self._call(self._redis.ping))
        except CacheGone:
            return False

    def _put_all(self, bundle: str, videos: Iterable[tuple[CachedVideo, float]]) -> int:
        arguments: list[str | bytes | float] = [_content_prefix(bundle)]
        for video, rating in videos:
            content = video.sid[: self._levels(bundle, video.sid)]
            arguments += (sid_text(video.sid), sid_text(content), str(video.item_id), msgspec.json.encode(video), rating)
        if len(arguments) == 1:
            return 0
        return int(self._call(self._put, keys=[_key(bundle, "sids"), _key(bundle, "videos")], args=arguments))

    def _levels(self, bundle: str, sid: Codes) -> int:
        """How many levels of a bundle's SIDs are content: half of them for a bundle that was never seeded."""
        if bundle not in self._content_levels:
            known = self._call(self._redis.get, _key(bundle, "content_levels"))
            if known is None:
                return len(sid) // 2
            self._content_levels[bundle] = int(known)
        return self._content_levels[bundle]

    def _call(self, ask: Any, *arguments: Any, **named: Any) -> Any:
        if self.resting:
            raise CacheGone("Redis failed a moment ago")
        try:
            return ask(*arguments, **named)
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
            self._resting_until = time.monotonic() + self._rest_s
            raise CacheGone(str(error)) from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _key(bundle: str, name: str) -> str:
    return f"sidstream:{{{bundle}}}:{name}"


def _content_prefix(bundle: str) -> str:
    return _key(bundle, "content:")


_decoder = msgspec.json.Decoder(CachedVideo)


def _decode_all(bodies: Iterable[bytes]) -> tuple[CachedVideo, ...]:
    return tuple(map(_decoder.decode, bodies))
