"""Odd JSON: label records with one thing wrong or unusual each, for the question whether all readers give the same verdict."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from streaming.records import Impression

MARK = "@@"
FIELDS = ("user_id", "ts", "impression_id", "impression_ts", "kind", "at_ms", "schema")
VALUES = (
    '"5"', '" 7 "', '"abc"', '""', '"0x10"', '"+5"', '"5.0"', '"1e3"', "5.7", "5.0", "1e3", "-1", "-0", "1e400", "true", "false", "null",
    "[]", "{}", "[5]", '{"a": 1}', "9223372036854775807", "9223372036854775808", "-9223372036854775809",
    "1" * 300, "1" * 1000, "1" * 1001, "1" * 1500,
    '"' + "x" * 300 + '"', '"\\u0000"', '"\\ud800"', '"\u0665"', '"CLICK"', '"click"', "NaN", "Infinity", "01", "1.", ".5", "0.1e-7",
)  # fmt: skip
DEEP = (10, 400, 600, 980, 999, 1000, 1020, 3000)


@dataclass(frozen=True)
class Body:
    """A body whose impression is filled in later; `event_id` tells it apart in the samples."""

    event_id: str
    template: bytes
    encoding: str = "utf-8"

    def of(self, shown: Impression) -> bytes:
        filled = self.template.replace(b"@ts@", str(shown.ts).encode()).replace(b"@late@", str(shown.ts + 61_000).encode())
        filled = filled.replace(b"@id@", shown.impression_id.encode()).replace(b"@user@", str(shown.user_id).encode())
        return filled if self.encoding == "utf-8" else filled.decode().encode(self.encoding)


def plain(event_id: str) -> dict[str, str]:
    """Field → its JSON text, of a good label that comes after its window."""
    return {
        "schema": '"engagement/1"',
        "event_id": json.dumps(event_id),
        "user_id": "@user@",
        "ts": "@late@",
        "impression_id": '"@id@"',
        "impression_ts": "@ts@",
        "kind": '"click"',
        "at_ms": "17",
    }


def joined(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def bodies(seed: int, count: int) -> list[Body]:
    """Every listed oddity, then random combinations of them, up to `count` at least."""
    found: list[Body] = []

    def add(text: str | bytes, encoding: str = "utf-8") -> None:
        body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        found.append(Body(name(), body, encoding))

    def name() -> str:
        return f"odd-{len(found)}"

    for field in FIELDS:
        for value in VALUES:
            add(joined({**plain(name()), field: value}))
        add(joined({key: value for key, value in plain(name()).items() if key != field}))
    for field in FIELDS:
        add(joined(plain(name()))[:-1] + f', "{field}": "last wins"}}')
        add('{"' + field + '": "first loses", ' + joined(plain(name()))[1:])
    for depth in DEEP:
        add(joined({**plain(name()), "more": "[" * depth + "]" * depth}))
        add(joined({**plain(name()), "more": '{"a":' * depth + "1" + "}" * depth}))
    for before, after in (
        ("", " trailing"), ("", "}"), ("", "\x00"), ("", joined(plain("other"))), ("\ufeff", ""), ("  \n\t", "\r\n"), ("\x0b", ""),
        ("/* c */", ""), ("[", "]"), ("[null, ", "]"), ("[1, ", "]"), ("[", ", 1]"), ("[[", "]]"), ("x", ""), ("[", ""),
    ):  # fmt: skip
        add(before + joined(plain(name())) + after)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        add(joined(plain(name())), encoding)
    good = joined({**plain("@name@"), "more": '"@@"'})
    for raw in (
        b"\xff",
        b"\xc3",
        b"\xc3\xa9",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\x01",
        b"\t",
        b"\\x",
    ):
        add(good.replace("@name@", name()).encode().replace(b"@@", raw, 1))
        add(good.replace("@name@", name()).encode().replace(b'"@@"', b"1") + raw)
    for length in (49_999, 50_000, 50_001, 60_000):
        add(joined({**plain(name()), "n" * length: "1"}))
    add(joined(plain(name())).replace('"', "'"))
    add(joined(plain(name())).replace("}", ",}"))
    rng = random.Random(seed)
    while len(found) < count:
        fields = plain(name())
        for field in rng.sample(FIELDS, 2):
            fields[field] = rng.choice(VALUES)
        text = joined(fields)
        add(text if rng.random() < 0.7 else text[: rng.randrange(1, len(text) + 1)])
    return found
