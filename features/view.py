"""A feature view as the Flink job, the writer and the readers need it: what Feast's registry says, without Feast.

Importing Feast takes seconds and hundreds of megabytes, so `sidstream features apply` writes the registered views beside the registry
(`views.json`) and the processes read that.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from feast import StreamFeatureView

NUMBERS = frozenset({"Int64", "Float64", "Float32", "Bool"})
TYPES = NUMBERS | {"String", "Json"}


class ViewError(ValueError):
    """A feature view that this system cannot compute or write; the message names view and feature."""


class Feature(msgspec.Struct, frozen=True):
    """A feature of a view; `type` is Feast's name for it."""

    name: str
    type: str


class Aggregate(msgspec.Struct, frozen=True):
    """How a feature is computed: a function of a column over the window that ends with the entity's latest event (None: over all)."""

    name: str
    function: str
    column: str
    window_s: float | None


class View(msgspec.Struct, frozen=True):
    """A view of one int64 entity; `packed`: written a second time for reading by the hundred."""

    name: str
    join_key: str
    features: tuple[Feature, ...]
    aggregates: tuple[Aggregate, ...]
    packed: bool = False


def view_of(registered: StreamFeatureView) -> View:
    """What a Feast view says, checked.

    Raises:
        ViewError: not one int64 entity, a feature without an aggregation or the other way round, or a type that is not written.
    """
    name = registered.name
    if len(registered.entity_columns) != 1 or str(registered.entity_columns[0].dtype) != "Int64":
        raise ViewError(f"{name}: expected one entity of type Int64 in the schema, found {[str(c) for c in registered.entity_columns]}")
    join_key = registered.entity_columns[0].name
    types = {field.name: str(field.dtype) for field in registered.schema if field.name != join_key}
    aggregates = tuple(
        Aggregate(a.resolved_name(a.time_window), a.function, a.column, seconds(a.time_window)) for a in registered.aggregations
    )
    names = [aggregate.name for aggregate in aggregates]
    if set(names) != set(types) or len(set(names)) < len(names):
        raise ViewError(f"{name}: schema and aggregations must name the same features, once each: {sorted(types)} and {sorted(names)}")
    unknown = [f"{feature} is {kind}" for feature, kind in types.items() if kind not in TYPES]
    if unknown:
        raise ViewError(f"{name}: {', '.join(unknown)}; there are {', '.join(sorted(TYPES))}")
    packed = registered.tags.get("packed") == "true"
    texts = [feature for feature, kind in types.items() if kind not in NUMBERS]
    if packed and texts:
        raise ViewError(f"{name}: a packed view holds numbers only, {', '.join(texts)} is none")
    # Feast keeps a schema as a set; the order of the aggregations is the one that stays.
    return View(name, join_key, tuple(Feature(each, types[each]) for each in names), aggregates, packed)


def seconds(window: timedelta | None) -> float | None:
    return window.total_seconds() if window else None
