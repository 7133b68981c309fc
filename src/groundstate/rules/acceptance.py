"""Parses the option `accept`: it names the new and changed reactions that a person accepts although rows match them already, and says how
the calls for these rows are treated.

The rows do not show whether a reaction's call was made for them before: groundstate's tables may have been dropped, or another system may
have made the call. So a person accepts the reaction with `call` (make the call for each row) or `doubt` (each call may have been made
already). There is no default.
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
    """An Acceptance holds the reactions that a person accepts (lets start although rows match them already).

    all: whether every reaction is accepted. of_all: 'call' or 'doubt' for all reactions; None where the person gave neither. named: the
    reactions accepted by name, each with 'call', 'doubt' or None.
    """

    all: bool = False
    of_all: Way | None = None
    named: Mapping[str, Way | None] = field(default_factory=dict)

    def is_accepted(self, name: str) -> bool:
        """Return whether the person accepts the reaction of this name, because it is named or because all reactions are accepted."""
        return self.all or name in self.named

    def call_or_doubt_for(self, name: str) -> Way | None:
        """Return 'call' (make this reaction's calls) or 'doubt' (they may have been made already); None if the person gave neither."""
        return self.named.get(name) or self.of_all


def parse_acceptance(given: Accept, names: Container[str]) -> Acceptance:
    """Return the Acceptance for what a person gave as `accept=` or on the command line.

    Args:
        given: True or 'all' accepts every reaction; 'call' or 'doubt' accepts every reaction and says how to treat its calls. A sequence
            accepts the reactions that it names, each as 'NAME', 'NAME=call' or 'NAME=doubt'; the name 'all' means all reactions. A mapping
            accepts the reactions that are its keys, with the values 'call', 'doubt' or None.
        names: the names of the app's reactions.

    Raises:
        DeclarationError: a value is neither 'call' nor 'doubt', or one reaction is given both values.
    """
    if isinstance(given, bool):
        return Acceptance(all=given)
    if isinstance(given, str):
        given = [f"{ALL}={given}"] if _parse_way(given) else [given]
    said = dict(given) if isinstance(given, Mapping) else _ways_by_name(_split_name_and_way(one, names) for one in given)
    ways = {name: _parse_way_or_raise(name, way) for name, way in said.items()}
    of_all = ways.pop(ALL, None) if ALL not in names else None
    return Acceptance(all=ALL in said and ALL not in names, of_all=of_all, named=ways)


def refuse_contradiction(accepted: Acceptance, baseline: Sequence[str]) -> None:
    """Raise DeclarationError if a reaction is accepted by name and also named in `baseline`, the reactions that ignore existing rows.

    A reaction in `baseline` may be given beside 'all': it is then an exception to 'all'.
    """
    for name in baseline:
        if name in accepted.named:
            way = accepted.named[name]
            raise DeclarationError(
                f"{name} is both accepted and a baseline: accept {name}{f'={way}' if way else ''} starts it on the rows that match now, and"
                f" baseline {name} leaves them as they are. Give one of the two; nothing was changed"
            )


def _ways_by_name(given: Iterable[tuple[str, str | None]]) -> dict[str, str | None]:
    said: dict[str, str | None] = {}
    for name, way in given:
        before = said.get(name)
        if before is not None and way is not None and before != way:
            raise DeclarationError(f"accept {name}={before} contradicts accept {name}={way}: give one of the two")
        said[name] = before or way
    return said


def _split_name_and_way(one: str, names: Container[str]) -> tuple[str, str | None]:
    name, equals, way = one.rpartition("=")
    return (name, way) if equals and one not in names else (one, None)


def _parse_way_or_raise(name: str, way: str | None) -> Way | None:
    known = None if way is None else _parse_way(way)
    if way is not None and known is None:
        raise DeclarationError(
            f"accept {name}={way}: write {name}=call if no call was made for the rows yet, or {name}=doubt if it may have been made"
        )
    return known


def _parse_way(word: str) -> Way | None:
    return "call" if word == "call" else "doubt" if word == "doubt" else None
