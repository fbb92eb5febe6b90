"""Ranges of bytes as RFC 9110 reads them."""

from __future__ import annotations

import pytest

from serving.ranges import NotSatisfiable, readable


@pytest.mark.parametrize(
    ("header", "plain"),
    [
        ("bytes=0-0", "bytes=0-0"),
        ("bytes=5-", "bytes=5-"),
        ("bytes=-500", "bytes=-500"),
        ("BYTES= 0-1 , 8-999", "bytes=0-1,8-999"),
        ("bytes=0-1,10-,3-4", "bytes=0-1,3-4"),
    ],
)
def test_what_has_bytes_in_the_file_is_kept(header: str, plain: str) -> None:
    assert readable(header, 10) == plain


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=", "bytes=-", "bytes=3-2", "bytes=a-b", "lines=0-1", "bytes=0-1,x", f"bytes={'0-1,' * 11}"]
)
def test_what_cannot_be_read_is_ignored(header: str) -> None:
    assert readable(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11,99-", "bytes=-0", f"bytes={10**17}-"])
def test_what_lies_outside_is_not_satisfiable(header: str) -> None:
    with pytest.raises(NotSatisfiable):
        readable(header, 10)


def test_an_empty_file_has_no_byte_to_ask_for() -> None:
    with pytest.raises(NotSatisfiable):
        readable("bytes=-5", 0)
