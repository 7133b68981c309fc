"""What somebody may have written by hand into a row of ours, column by column: sound types out of bounds, and other types. Values alone."""

from __future__ import annotations

from typing import Any

TIMES: tuple[Any, ...] = ("soon", "", "2026-13-01 00:00:00", "24:00", "9999-12-31 23:59:59.999999", 5, 1e300, b"\xff")
COUNTS: tuple[Any, ...] = (-1, 2**31, "many", 1.5, b"1", "")
TEXTS: tuple[Any, ...] = (b"\xff\xfe", "\x1b[31mred\u202e\x00", "x" * 3000)

# Of `groundstate_attempt`, on SQLite, which keeps what it is given. All of it is held for a person.
HELD: dict[str, tuple[Any, ...]] = {
    "worker": (-1, 2**62 + 1, "abc", b"x", 1.5),
    "call": ("abc", 1.5, b"x"),
    "call_no": COUNTS,
    "unsure": ("yes", 7.5, b"\x01"),
    "since": TIMES,
    "first_at": TIMES,
    "deadline": TIMES,
    "failures": COUNTS,
    "next_at": ("soon", "", 5, b"\xff"),
    "together": COUNTS,
    "begun_with": (
        b"\xff\xfe",
        "",
        "x",
        "[]",
        "5",
        "null",
        '{"service": 5}',
        '{"occurrence": "round"}',
        "[" * 10_000,
        "\x1b[31mred\u202e\x00",
    ),
}
# What is no state of this version: left as it is, and read as held.
STATES_UNKNOWN: tuple[Any, ...] = ("nonsense", "", 5, b"begun", "BEGUN", " held")
# Words, and what names no record: the attempt stays what it is.
KEPT: dict[str, tuple[Any, ...]] = {
    "error": TEXTS,
    "why": TEXTS,
    "outcome": (*TEXTS, "", "x", "[]", "{}", "null", "5", '[{"a": 1}]', "[" * 10_000, "[1, 2"),
    "blocks": TEXTS,
    "record": ("xyz", "", "[1]", "9" * 30, "\u0663", "1.0", " 1", b"\xff", "1e3", "\x00", "\x1b[2J"),
    "occurrence": ("x", "[", "\x00", b"\xff"),
}
