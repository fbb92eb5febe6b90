"""What the record types look like to Flink: columns and the predicate of a usable record, generated from the structs.

Flink's JSON format reads leniently: `"5"` and `5.7` become the BIGINT 5, a number becomes a STRING, and what cannot be read becomes NULL.
So a record is usable to the whole system when every required field can be read this way and every bound of its struct holds;
an optional field that cannot be read is unknown, which is what NULL means everywhere. Only identifiers are read as texts and must be whole
numbers, because 5.7 is nobody's, while a time may well be cut to its millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import inspect

SCALARS: dict[type[inspect.Type], str] = {
    inspect.IntType: "BIGINT",
    inspect.StrType: "STRING",
    inspect.FloatType: "DOUBLE",
    inspect.BoolType: "BOOLEAN",
    inspect.LiteralType: "STRING",
}

IDENTIFIERS = frozenset({"user_id", "item_id"})
BELOW_ZERO = "-5E-324"  # the first DOUBLE below zero: Flink puts -0.0 before 0.0 where it compares with a range


def quoted(name: str) -> str:
    """An identifier in back quotes: `case` and `value` are words of SQL."""
    return f"`{name}`"


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("'", "''") + "'"


def without_none(kind: inspect.Type) -> inspect.Type:
    """The type itself, of an optional one."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    (only,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    return only


def sql_type(kind: inspect.Type) -> str:
    """Flink's type for a field of a record.

    Raises:
        TypeError: the field has a type that has no column.
    """
    kind = without_none(kind)
    if isinstance(kind, inspect.ListType):
        return f"ARRAY<{sql_type(kind.item_type)}>"
    if isinstance(kind, inspect.StructType):
        return row_type(kind.cls)
    if type(kind) in SCALARS:
        return SCALARS[type(kind)]
    raise TypeError(f"no Flink column for {kind}")


def fields(record: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """Fields of a record type, in order of definition."""
    struct = inspect.type_info(record)
    assert isinstance(struct, inspect.StructType)
    return struct.fields


def row_type(record: type[msgspec.Struct]) -> str:
    """A struct as a nested column."""
    return "ROW<" + ", ".join(f"{quoted(field.encode_name)} {sql_type(field.type)}" for field in fields(record)) + ">"


def columns(records: Sequence[type[msgspec.Struct]]) -> dict[str, str]:
    """Name and type of every column that a table over all of these records has; `schema` tells them apart.

    Raises:
        TypeError: two records use one name for different types.
    """
    found: dict[str, str] = {"schema": "STRING"}
    for record in records:
        for field in fields(record):
            kind = sql_type(field.type)
            if found.setdefault(field.encode_name, kind) != kind:
                raise TypeError(f"{record.__name__}.{field.encode_name} is {kind}, elsewhere {found[field.encode_name]}")
    return found


def wire_columns(records: Sequence[type[msgspec.Struct]]) -> dict[str, str]:
    """The columns as the JSON format reads them: identifiers as texts."""
    return {name: "STRING" if name in IDENTIFIERS else kind for name, kind in columns(records).items()}


def identifier(column: str) -> str:
    """A column of `IDENTIFIERS` as a number; NULL where it is none."""
    return f"TRY_CAST({column} AS BIGINT)"


def bounds(column: str, kind: inspect.Type) -> list[str]:
    """Conditions that a value that is there must meet."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        found = [f"{column} >= {kind.ge}"] if kind.ge is not None and kind.ge > -(2**63) else []
        if isinstance(kind, inspect.FloatType) and kind.ge == 0:
            found = [f"{column} > {BELOW_ZERO}"]
        found += [f"{column} <= {kind.le}"] if kind.le is not None and kind.le < 2**63 - 1 else []
        found += [f"{column} > {kind.gt}"] if kind.gt is not None else []
        found += [f"{column} < {kind.lt}"] if kind.lt is not None else []
        return found
    if isinstance(kind, inspect.StrType):
        found = [f"CHAR_LENGTH({column}) >= {kind.min_length}"] if kind.min_length else []
        found += [f"CHAR_LENGTH({column}) <= {kind.max_length}"] if kind.max_length is not None else []
        found += [f"REGEXP({column}, {text(kind.pattern)})"] if kind.pattern is not None else []
        return found
    if isinstance(kind, inspect.LiteralType):
        return [f"{column} IN ({', '.join(text(str(value)) for value in kind.values)})"]
    return []


def usable(record: type[msgspec.Struct]) -> str:
    """Condition under which a row is a usable record of this type; the schema is named, so it is never NULL for another."""
    struct = inspect.type_info(record)
    assert isinstance(struct, inspect.StructType)
    conditions = [f"`schema` = {text(str(struct.tag))}"]
    for field in struct.fields:
        column = quoted(field.encode_name)
        held = bounds(column, without_none(field.type))
        if field.encode_name in IDENTIFIERS:
            number = identifier(column)
            conditions += [f"CAST({number} AS STRING) = {column}", *bounds(number, field.type)]
        elif field.required:
            conditions.append(f"{column} IS NOT NULL")
            conditions.extend(held)
        elif held:
            conditions.append(f"({column} IS NULL OR ({' AND '.join(held)}))")
    return " AND ".join(conditions)
