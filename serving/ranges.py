"""Ranges of bytes, as RFC 9110 (14.1 and 14.2) wants them read."""

from __future__ import annotations

import re
from typing import Final

MOST: Final = 10  # ranges of one request; more are not worth a multipart answer
_unit = re.compile(r"bytes=(.*)", re.IGNORECASE)
_range = re.compile(r"(\d{1,18})-(\d{0,18})|-(\d{1,18})")


class NotSatisfiable(Exception):
    """No range of the request has a byte in the file."""


def readable(header: str, size: int) -> str | None:
    """The ranges of a header that have bytes in a file of `size` bytes, as a plain header; None where the header is to be ignored.

    Raises:
        NotSatisfiable: it can be read, and all of it lies outside the file.
    """
    unit = _unit.fullmatch(header.strip())
    parts = [part.strip() for part in unit[1].split(",") if part.strip()] if unit else []
    if not 0 < len(parts) <= MOST:
        return None
    inside = []
    for part in parts:
        read = _range.fullmatch(part)
        if read is None or (read[2] and int(read[2]) < int(read[1])):
            return None
        if (int(read[1]) < size) if read[1] else (size > 0 and int(read[3]) > 0):
            inside.append(part)
    if not inside:
        raise NotSatisfiable
    return f"bytes={','.join(inside)}"
