"""Which of an app's databases a commit or a hint is about, if that is known: shards have the same tables, and need not all look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import URL

from groundstate.engine.sql.commit_hooks import Touched
from groundstate.store.safe_name import name_of


@dataclass(frozen=True)
class Part:
    """One of an app's databases, or all of them.

    name: the name in the app; "" for all databases, or for one without a name. names: the names of the app's databases, by the text that
    `name_of` makes of their URLs. several: whether the app has more databases than this one.
    """

    name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    def of(self, touched: Touched) -> str:
        """Return the name of the database to which a commit went, or "" if that is not known."""
        return self.names.get(touched.place, "")

    def concerns(self, name: str) -> bool:
        """Return whether something about the database of this name concerns this database too. It does if either name is unknown."""
        return may_be_one(name, self.name)


def may_be_one(name: str, other: str) -> bool:
    """Return whether two names may belong to the same database. They may if either is unknown ("")."""
    return not name or not other or name == other


def names_by_place(named: Iterable[tuple[str | None, URL]]) -> dict[str, str]:
    """Return the names of databases by the text of their URLs, without databases whose texts are alike."""
    places = [(name_of(url), name) for name, url in named]
    seen = Counter(place for place, _ in places)
    return {place: name for place, name in places if name and seen[place] == 1}
