"""What a person said of new and changed reactions on rows that are there: which start, and what is known of their calls.

Where a reaction makes a call, nobody knows from the rows alone whether it was made before: our tables may have been dropped, or another
system called. So its rows are accepted as rows to `call`, or as a `doubt` each, and there is no default.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from groundstate.values.errors import DeclarationError

Way = Literal["call", "doubt"]
Accept = bool | str | Sequence[str] | Mapping[str, str | None]
ALL = "all"


@dataclass(frozen=True)
class Acceptance:
    """all, of_all: whether every reaction is accepted, and in which way where that was said. named: those that were named, likewise."""

    all: bool = False
    of_all: Way | None = None
    named: Mapping[str, Way | None] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        return self.all or name in self.named

    def way(self, name: str) -> Way | None:
        """What was said of its calls; None: nothing."""
        return self.named.get(name) or self.of_all


def acceptance(given: Accept, names: Container[str]) -> Acceptance:
    """What was given, in one form.

    given: True, or 'all': every reaction, with nothing said of calls; 'call' or 'doubt': every reaction, in this way; names, each also as
    'NAME=call' or 'NAME=doubt', 'all' among them; or a mapping of names to 'call', 'doubt' or None. names: that the app has.

    Raises:
        DeclarationError: a way that is none.
    """
    if isinstance(given, bool):
        return Acceptance(all=given)
    if isinstance(given, str):
        given = [f"{ALL}={given}"] if _way(given) else [given]
    said = dict(given) if isinstance(given, Mapping) else dict(_parted(one, names) for one in given)
    ways = {name: _checked(name, way) for name, way in said.items()}
    of_all = ways.pop(ALL, None) if ALL not in names else None
    return Acceptance(all=ALL in said and ALL not in names, of_all=of_all, named=ways)


def _parted(one: str, names: Container[str]) -> tuple[str, str | None]:
    name, equals, way = one.rpartition("=")
    return (name, way) if equals and one not in names else (one, None)


def _checked(name: str, way: str | None) -> Way | None:
    known = None if way is None else _way(way)
    if way is not None and known is None:
        raise DeclarationError(
            f"accept {name}={way}: say {name}=call for rows that were never called, or {name}=doubt where they may have been"
        )
    return known


def _way(word: str) -> Way | None:
    return "call" if word == "call" else "doubt" if word == "doubt" else None
