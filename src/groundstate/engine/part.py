"""Which of an app's databases a commit or a hint is about, where that can be told: shards have the same tables, and need not all look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import URL

from groundstate.engine.hints import Touched
from groundstate.store.naming import name_of


@dataclass(frozen=True)
class Part:
    """One of an app's databases, or all of them. name: in the app; "" of all, or of one without a name. names: of all that have one, by
    their databases. several: whether the app has more databases than this one.
    """

    name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    def of(self, touched: Touched) -> str:
        """The name of the database that was committed to; "" where that is not known."""
        return self.names.get(touched.place, "")

    def concerns(self, name: str) -> bool:
        """Whether what is about the database of this name is about this one as well: yes, where one of them is not known."""
        return may_be_one(name, self.name)


def may_be_one(name: str, other: str) -> bool:
    """Whether these names may be of one database: yes, where one of them is not known."""
    return not name or not other or name == other


def names_by_place(named: Iterable[tuple[str | None, URL]]) -> dict[str, str]:
    """The names of those that can be told from all others by their URLs."""
    places = [(name_of(url), name) for name, url in named]
    seen = Counter(place for place, _ in places)
    return {place: name for place, name in places if name and seen[place] == 1}
