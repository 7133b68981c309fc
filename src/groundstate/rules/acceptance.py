"""Reads what a person accepts about new and changed reactions on rows that exist: which start, and how their calls are treated.

Where a reaction makes a call, the rows alone do not show whether it was made before: our tables may have been dropped, or another system
may have called. So its rows are accepted as rows to `call`, or each as a `doubt`, and there is no default.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from groundstate.values.errors import DeclarationError

Way = Literal["call", "doubt"]
Accept = bool | str | Sequence[str] | Mapping[str, str | None]
ALL = "all"


@dataclass(frozen=True)
class Acceptance:
    """An Acceptance says which reactions are accepted. all: every reaction is; of_all: the way of their calls, where one was given. named:
    the reactions accepted by name, each with the way of its calls or None.
    """

    all: bool = False
    of_all: Way | None = None
    named: Mapping[str, Way | None] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        return self.all or name in self.named

    def way(self, name: str) -> Way | None:
        """Return how the calls of this reaction are treated, 'call' or 'doubt'; None where neither was given."""
        return self.named.get(name) or self.of_all


def acceptance(given: Accept, names: Container[str]) -> Acceptance:
    """Return the Acceptance for what a person gave in any of its forms.

    Args:
        given: True or 'all' accepts every reaction, with no way of calls; 'call' or 'doubt' accepts every reaction, in this way; names
            accept these reactions, each also as 'NAME=call' or 'NAME=doubt', 'all' among them; so does a mapping of names to 'call',
            'doubt' or None.
        names: the names of the app's reactions.

    Raises:
        DeclarationError: a way is neither 'call' nor 'doubt', or one reaction is given both.
    """
    if isinstance(given, bool):
        return Acceptance(all=given)
    if isinstance(given, str):
        given = [f"{ALL}={given}"] if _way(given) else [given]
    said = dict(given) if isinstance(given, Mapping) else _one_way_each(_parted(one, names) for one in given)
    ways = {name: _checked(name, way) for name, way in said.items()}
    of_all = ways.pop(ALL, None) if ALL not in names else None
    return Acceptance(all=ALL in said and ALL not in names, of_all=of_all, named=ways)


def refuse_contradiction(said: Acceptance, baseline: Sequence[str]) -> None:
    """Raise DeclarationError for a reaction that is to leave out the rows that are there, and is named to start on them as well.

    Beside 'all' a baseline is an exception to it.
    """
    for name in baseline:
        if name in said.named:
            way = said.named[name]
            raise DeclarationError(
                f"{name} is both accepted and a baseline: accept {name}{f'={way}' if way else ''} starts it on the rows that match now, and"
                f" baseline {name} leaves them as they are. Say one of the two; nothing was changed"
            )


def _one_way_each(given: Iterable[tuple[str, str | None]]) -> dict[str, str | None]:
    said: dict[str, str | None] = {}
    for name, way in given:
        before = said.get(name)
        if before is not None and way is not None and before != way:
            raise DeclarationError(f"accept {name}={before} and {name}={way}: its calls are either to be made or in doubt, so say one")
        said[name] = before or way
    return said


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
