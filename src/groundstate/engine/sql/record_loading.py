"""How the records of one reaction are loaded: with which options, from which tables, and with which locks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Mapper

from groundstate.engine.sql.record_keys import PrimaryKey
from groundstate.rules.specs import ReactionSpec
from groundstate.store.port import Database

# values of `lazy` with which a relationship is loaded together with the object that has it
_AT_ONCE = (False, "joined", "selectin", "subquery", "immediate")


class RecordLoading:
    """Loads the records of one reaction, by their mapping and by the `load` option of the reaction's call."""

    def __init__(self, spec: ReactionSpec, database: Database) -> None:
        self._spec = spec
        self._mapper = spec.mapper
        self._database = database
        self.options = tuple(spec.call.load) if spec.call else ()

    def with_row_lock(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement with a lock on the records that it selects."""
        return self._database.with_row_locks(statement, self._spec.record)

    def with_fresh_records(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement with an option that loads records as they are in the database now. The handler of another reaction may have
        left older copies in the session.
        """
        return statement.options(*self.options).execution_options(populate_existing=True)

    def statements_locking_children(self, wanted: Sequence[PrimaryKey]) -> list[Select[Any]]:
        """Return statements that lock the children of these records, for the clauses made with `every_child`."""
        locks = []
        for every in self._spec.children:
            columns = every.parent_key
            parents = columns[0].in_([key[0] for key in wanted]) if len(columns) == 1 else tuple_(*columns).in_(wanted)
            locks.append(select(*columns).where(parents).with_for_update(read=True))
        return locks

    @cached_property
    def loads_one_table(self) -> bool:
        """Return whether loading a record reads no table but the record's own, in one statement."""
        mapper = self._mapper
        if self.options or len(mapper.tables) > 1 or mapper.with_polymorphic_mappers:
            return False
        return not any(relationship.lazy in (False, "joined") for relationship in mapper.relationships)

    @cached_property
    def tables_loaded(self) -> list[Any]:
        """Return the tables that are read when a record is loaded."""
        mappers = [self._mapper, *self._mapper.with_polymorphic_mappers, *self.mappers_loaded_along]
        return list(dict.fromkeys(table for mapper in mappers for table in mapper.tables))

    @property
    def mappers_loaded_along(self) -> list[Mapper[Any]]:
        """Return the mappers of the other records that are loaded together with a record, by its mapping or by the call's `load`."""
        found = [part for option in self.options for part in _loader_path(option) if isinstance(part, Mapper)]
        found += [one for one in self._mapper.self_and_descendants if one.polymorphic_load == "selectin"]
        seen, left = {self._mapper: None}, [self._mapper, *found]
        while left:
            mapper = left.pop(0)
            seen[mapper] = None
            left += [one.mapper for one in mapper.relationships if one.lazy in _AT_ONCE and one.mapper not in seen]
        return [mapper for mapper in seen if mapper is not self._mapper]


def _loader_path(option: Any) -> tuple[Any, ...]:
    """Return the mappers and attributes along the path of a loader option, as a tuple. Empty if this version of SQLAlchemy does not expose
    the path.
    """
    return tuple(getattr(getattr(option, "path", None), "path", ()))
