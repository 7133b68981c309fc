"""Finds which of an app's databases a commit or a hint is about. All shards have the same tables, but only the shard with the touched rows
has to be queried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import URL

from groundstate.engine.sql.commit_hooks import TouchedRecords
from groundstate.store.safe_name import label_of_url


@dataclass(frozen=True)
class DatabasePart:
    """Identifies one of an app's databases, or all of them.

    name: the database's name in the app; "" for all databases, or for a database without a name. names: the name of each of the app's
    databases, by the text that `label_of_url` makes of its URL. several: whether the app has more than one database.
    """

    name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    several: bool = False

    def name_of_database(self, touched: TouchedRecords) -> str:
        """Return the name of the database to which a commit went, or "" if that is not known."""
        return self.names.get(touched.place, "")

    def is_concerned_by(self, name: str) -> bool:
        """Return whether a commit or hint about the database with this name concerns this database. Also True if either name is unknown."""
        return may_be_same_database(name, self.name)


def may_be_same_database(name: str, other: str) -> bool:
    """Return whether two names may belong to one database: the names are equal, or a name is unknown ("")."""
    return not name or not other or name == other


def names_by_url_text(named: Iterable[tuple[str | None, URL]]) -> dict[str, str]:
    """Return a mapping from the text of each database's URL to its name. Databases without a name, or with the same text as another
    database, are left out.
    """
    places = [(label_of_url(url), name) for name, url in named]
    seen = Counter(place for place, _ in places)
    return {place: name for place, name in places if name and seen[place] == 1}
