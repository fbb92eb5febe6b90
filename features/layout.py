"""How feature values lie in Redis: Feast's own layout, byte for byte, and the packed copy of candidate features.

Feast (entity key serialization 3): one hash per entity. Its key is the serialized entity followed by the project; of every view it has
one field per feature (murmur3 of `view:feature`, little endian; the value a protobuf `Value`) and `_ts:<view>` (a protobuf `Timestamp`).

Packed: one string per entity and view, so that hundreds of entities come in one MGET and decode as one array:

    int64 big endian    event_timestamp, ms (first, so that a script in Redis can compare it)
    float64[features]   little endian, in the order of the view's schema; NaN where the value is null

The wire bytes of a few scalar types are written here by hand, ten times faster than through protobuf objects; a test compares them
with what Feast itself writes. Nothing here imports Feast: serving reads without it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import mmh3
import msgspec

from features.view import Feature, View

PREFIX = "sidstream:features"
STRING, INT64 = 2, 4  # feast.types.ValueType

Encoder = Callable[[Any], bytes]


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer; negative numbers take ten bytes."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@lru_cache(maxsize=4096)
def small_int(value: int) -> bytes:
    """`Value(int64_val=…)`, remembered: counters are mostly small."""
    return b"\x20" + varint(value)


def int64_value(value: Any) -> bytes:
    return small_int(value) if 0 <= value < 4096 else b"\x20" + varint(value)


def double_value(value: Any) -> bytes:
    return b"\x29" + struct.pack("<d", value)


def float_value(value: Any) -> bytes:
    return b"\x35" + struct.pack("<f", value)


def bool_value(value: Any) -> bytes:
    return b"\x38\x01" if value else b"\x38\x00"


def string_value(value: Any) -> bytes:
    encoded = value.encode()
    return b"\x12" + varint(len(encoded)) + encoded


def json_value(value: Any) -> bytes:
    """A JSON text, as bytes or `msgspec.Raw`, taken as it is."""
    encoded = bytes(value)
    return JSON_TAG + varint(len(encoded)) + encoded


JSON_TAG = varint(32 << 3 | 2)
ENCODERS: dict[str, Encoder] = {
    "Int64": int64_value,
    "Float64": double_value,
    "Float32": float_value,
    "Bool": bool_value,
    "String": string_value,
    "Json": json_value,
}
PYTHON_TYPES: dict[str, Any] = {
    "Int64": int | None,
    "Float64": float | None,
    "Float32": float | None,
    "Bool": bool | None,
    "String": str | None,
    "Json": msgspec.Raw,
}


def length_prefixed(encoded: bytes, tag: bytes) -> bytes:
    """The body of a protobuf message with a single length-delimited field; empty when the field is not there."""
    if not encoded.startswith(tag):
        return b""
    position = len(tag)
    while encoded[position] & 0x80:
        position += 1
    return encoded[position + 1 :]


def timestamp(ms: int) -> bytes:
    """Protobuf `Timestamp` of a time in milliseconds; zero parts are left out, as protobuf does."""
    seconds, rest = divmod(ms, 1000)
    return (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(rest * 1_000_000) if rest else b"")


def milliseconds(encoded: bytes) -> int:
    """The time of a protobuf `Timestamp`, in milliseconds."""
    parts, position = {0x08: 0, 0x10: 0}, 0
    while position < len(encoded):
        tag, shift, value = encoded[position], 0, 0
        position += 1
        while True:
            byte = encoded[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        parts[tag] = value
    return parts[0x08] * 1000 + parts[0x10] // 1_000_000


def field_name(view: str, feature: str) -> bytes:
    """Name of a feature's field in an entity's hash."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def timestamp_field(view: str) -> bytes:
    """Name of the field with a view's event timestamp."""
    return f"_ts:{view}".encode()


class ViewLayout(msgspec.Struct, frozen=True, dict=True):
    """How one view lies in Redis. Serializable, so that readers learn it from Redis and need no registry."""

    view: str
    join_key: str  # of one int64 entity
    features: tuple[Feature, ...]
    packed: bool = False

    @cached_property
    def key_head(self) -> bytes:
        name = self.join_key.encode()
        return struct.pack("<III", 1, STRING, len(name)) + name + struct.pack("<II", INT64, 8)

    def key(self, project: str, entity: int) -> bytes:
        """Key of an entity's hash."""
        return self.key_head + struct.pack("<q", entity) + project.encode()

    @cached_property
    def fields(self) -> tuple[bytes, ...]:
        """Names of the features' fields, in the order of `features`."""
        return tuple(field_name(self.view, feature.name) for feature in self.features)

    @cached_property
    def timestamp_field(self) -> bytes:
        return timestamp_field(self.view)

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        return tuple(ENCODERS[feature.type] for feature in self.features)

    @cached_property
    def entity_field(self) -> bytes:
        return field_name(self.view, self.join_key)

    def encode(self, entity: int, values: tuple[Any, ...]) -> list[bytes]:
        """Field names and protobuf values in turn, as HSET takes them; null is the empty `Value`.

        Feast counts the entity of a stream feature view among its features, so it is written too.
        """
        words = [self.entity_field, int64_value(entity)]
        for field, encode, value in zip(self.fields, self.encoders, values, strict=True):
            words += (field, b"" if value is None or value == b"null" else encode(value))
        return words

    @cached_property
    def row(self) -> type[msgspec.Struct]:
        """Type of a message of `features.<view>`: `entity`, `event_timestamp` (ms) and the features, in this order."""
        columns = [(feature.name, PYTHON_TYPES[feature.type]) for feature in self.features]
        rename = {"entity": self.join_key}
        return msgspec.defstruct(self.view, [("entity", int), ("event_timestamp", int), *columns], rename=rename, frozen=True)

    def packed_head(self, project: str) -> str:
        """What the keys of all packed copies begin with: short, because hundreds are sent at once; other for other bytes."""
        names = ",".join(f"{feature.name}:{feature.type}" for feature in self.features)
        return f"{PREFIX}:{zlib.crc32(f'{project}:{self.view}:{names}'.encode()):08x}:"

    def packed_key(self, project: str, entity: int) -> str:
        """Key of an entity's packed copy."""
        return f"{self.packed_head(project)}{entity}"

    @cached_property
    def packed_struct(self) -> struct.Struct:
        return struct.Struct(f"<{len(self.features)}d")

    def pack(self, event_timestamp: int, values: tuple[Any, ...]) -> bytes:
        numbers = [float("nan") if value is None else value for value in values]
        return struct.pack(">q", event_timestamp) + self.packed_struct.pack(*numbers)


def layouts_key(project: str) -> str:
    """Redis hash of the layouts of all views, by name, as JSON."""
    return f"{PREFIX}:{project}:layouts"


def offsets_key(project: str) -> str:
    """Redis hash of the next offset to write, by `topic:partition`."""
    return f"{PREFIX}:{project}:offsets"


def written_offsets(client: Any, project: str) -> dict[str, int]:
    """The next offset to write, by `topic:partition`: rows before it are online; empty where nothing was written yet.

    Raises:
        redis.RedisError: the store does not answer.
    """
    return {place.decode(): int(offset) for place, offset in client.hgetall(offsets_key(project)).items()}


def layout_of(view: View) -> ViewLayout:
    """Where the values of a view lie."""
    return ViewLayout(view.name, view.join_key, view.features, view.packed)
