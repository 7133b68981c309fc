"""The primary keys of one reaction's records: their texts, their columns, and the statements that find records by them.

An attempt names its record by the canonical text of the key, so keys are converted to texts and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Enum,
    Integer,
    LargeBinary,
    Select,
    String,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import Mapper

from groundstate.engine.sql import in_list
from groundstate.engine.sql.key_columns import KeyColumn, column_as_stored
from groundstate.store.port import Database
from groundstate.values import keys
from groundstate.values.errors import GroundstateError
from groundstate.values.keys import BytesOfText, NoValue

PrimaryKey = tuple[Any, ...]

_WANTED = "groundstate_wanted"
_APART = "groundstate_apart"


class RecordKeys:
    """The primary keys of one mapped class on one database.

    user_filter_conditions: The SQL conditions of the user's ORM filters; a record that a filter hides is not found by its key.
    """

    def __init__(self, mapper: Mapper[Any], database: Database, user_filter_conditions: Sequence[ColumnElement[bool]]) -> None:
        self._mapper = mapper
        self._database = database
        self._entity: Any = mapper.class_
        self._user_filter_conditions = user_filter_conditions
        self._getters = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        self.key_attributes = tuple(getattr(self._entity, name) for name in self._getters)
        self.key_columns = [KeyColumn(column, database) for column in mapper.primary_key]
        self._texts_find_records = all(column.is_plain for column in self.key_columns)

    @property
    def texts_find_records(self) -> bool:
        """Return whether it is certain that the database finds records by the texts of their keys."""
        return self._texts_find_records

    def note_texts_find_records(self) -> None:
        """Note that a query has shown that the database finds records by the texts of their keys."""
        self._texts_find_records = True

    # ---- texts ---------------------------------------------------------------------------------------------------------------
    def key_of_record(self, record: Any) -> PrimaryKey:
        """Return the primary key of a loaded record."""
        values = record.__dict__
        try:
            return tuple([values[name] for name in self._getters])
        except KeyError:  # the attribute is expired, or is mapped under another name than the column's
            return tuple(self._mapper.primary_key_from_instance(record))

    def record_text(self, key: PrimaryKey) -> str:
        """Return the canonical text of a key, the text by which attempts name the record."""
        return keys.record_text(key)

    def record_for_people(self, key: PrimaryKey) -> str:
        """Return a text that shows a key to people. It works even for a key that has no canonical text; a reaction with such keys is
        refused.
        """
        try:
            return self.record_text(key)
        except GroundstateError:
            return ", ".join(str(value) for value in key)

    def key_from_text(self, written: str) -> PrimaryKey:
        """Return the primary key with this canonical text. Raises ValueError, with a message that says what was expected."""
        texts = keys.split_record_text(written, len(self.key_columns))
        return tuple([column.value_from_text(text) for column, text in zip(self.key_columns, texts, strict=True)])

    def key_from_text_or_none(self, written: str) -> PrimaryKey | None:
        """Return the primary key with this canonical text; None if no key has this text, so that there is no such record."""
        try:
            return self.key_from_text(written)
        except ValueError:
            return None

    @cached_property
    def key_text_in_sql(self) -> ColumnElement[str] | None:
        """Return the SQL expression for the canonical text of the key; None if SQL cannot compute this text.

        The expression is used only to exclude rows early. The final decision is made in Python.
        """
        if len(self._mapper.primary_key) > 1:
            return None
        kind = self._mapper.primary_key[0].type
        if isinstance(kind, Integer) or (isinstance(kind, Uuid) and self._database.name == "postgresql"):
            return cast(self.key_attributes[0], Text)
        return self.key_attributes[0] if stores_canonical_text(self._database, kind) else None

    # ---- columns ---------------------------------------------------------------------------------------------------------------
    @cached_property
    def key_columns_as_stored(self) -> tuple[Any, ...]:
        """Return the key columns in a form in which every stored value can be loaded. A value by which no record can be found is loaded as
        a NoValue.
        """
        alone = len(self.key_attributes) == 1
        return tuple(column_as_stored(attribute, self._database.engine.dialect, alone=alone) for attribute in self.key_attributes)

    @cached_property
    def may_store_other_key_forms(self) -> bool:
        """Return whether the database may store a key in a form that the column's type would not write. A record with such a key can be
        loaded, but is not found by its key.
        """
        if self._database.locks_rows:
            return False  # PostgreSQL stores a value in one form only
        return not all(one is attribute for one, attribute in zip(self.key_columns_as_stored, self.key_attributes, strict=True))

    # ---- conditions on the key -------------------------------------------------------------------------------------------------
    def has_key_among(self, wanted: Sequence[PrimaryKey]) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is one of these keys. Use it in a statement that is executed only once."""
        if len(self.key_attributes) > 1:
            return and_(tuple_(*self.key_attributes).in_(wanted), *self._user_filter_conditions)
        return and_(self.key_attributes[0].in_([key[0] for key in wanted]), *self._user_filter_conditions)

    def has_key_among_present(self, present_keys: Callable[[], Sequence[PrimaryKey]]) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is one of the keys that `present_keys` returns when the statement is executed."""
        if len(self.key_attributes) > 1:
            return tuple_(*self.key_attributes).in_(bindparam(_APART, expanding=True, callable_=present_keys, unique=True))
        kind = self._mapper.primary_key[0].type
        return in_list.is_one_of(
            self._database, self.key_attributes[0], _APART, kind, lambda: [key[0] for key in present_keys()]
        ).expression

    def has_key_after(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is greater than this key, which may contain a NoValue."""
        values = self.key_values_in_sql(key)
        if len(values) == 1:
            return self.key_attributes[0] > values[0]  # type: ignore[no-any-return]  # the attributes of a mapped class are Any
        return tuple_(*self.key_attributes) > tuple_(*values)

    def key_values_in_sql(self, key: Sequence[Any]) -> list[ColumnElement[Any]]:
        """Return the SQL of the values of a key. A NoValue becomes the value that is stored."""
        return [
            _stored_key_value_in_sql(value.raw) if isinstance(value, NoValue) else bindparam(None, value, type_=column.type)
            for value, column in zip(key, self._mapper.primary_key, strict=True)
        ]

    # ---- keys that are passed as parameters -----------------------------------------------------------------------------------
    def key_parameters(self, wanted: Sequence[PrimaryKey]) -> dict[str, Any]:
        """Return the parameters that pass these keys to the `select_given_...` statements. Those statements are built once and cached."""
        if len(self.key_attributes) > 1:
            return {_WANTED: list(wanted)}
        return {_WANTED: self._is_listed_key.parameter([key[0] for key in wanted])}

    @cached_property
    def _is_listed_key(self) -> in_list.ListCondition:
        return self._is_listed(self.key_attributes[0])

    def _is_listed(self, column: Any) -> in_list.ListCondition:
        return in_list.is_one_of(self._database, column, _WANTED, self._mapper.primary_key[0].type)

    @cached_property
    def is_given_record(self) -> ColumnElement[bool]:
        """Return the SQL condition that the record's key is one of the keys passed by `key_parameters`."""
        return and_(self.is_given_key(self.key_attributes), *self._user_filter_conditions)

    def is_given_key(self, columns: Sequence[Any]) -> ColumnElement[bool]:
        """Return the SQL condition that the values of these columns are one of the keys passed by `key_parameters`. The columns are those
        of the record's table or of an alias of it.
        """
        if len(columns) > 1:
            return tuple_(*columns).in_(bindparam(_WANTED, expanding=True))
        return self._is_listed(columns[0]).expression

    # ---- statements ------------------------------------------------------------------------------------------------------------
    @cached_property
    def select_given_keys(self) -> Select[Any]:
        """Select the given keys that exist in the table, and lock their rows. Rows that other transactions have locked are skipped."""
        return self._database.with_row_locks(select(*self.key_attributes).where(self.is_given_record), self._entity)

    def select_existing_keys(self, wanted: Sequence[PrimaryKey]) -> Select[Any]:
        """Select the given keys that exist in the table."""
        return select(*self.key_attributes).where(self.has_key_among(wanted))

    def select_keys_after(self, key: PrimaryKey | None, limit: int) -> Select[Any]:
        """Select the next keys of the table in key order, whether or not their records are ready. key: None for the first keys."""
        statement = select(*self.key_columns_as_stored).select_from(self._entity).order_by(*self.key_attributes).limit(limit)
        return statement if key is None else statement.where(self.has_key_after(key))


def stores_canonical_text(database: Database, kind: Any) -> bool:
    """Return whether a column of this type stores the canonical text of its values, so that SQL has the same text as Python."""
    return isinstance(kind, String) and not isinstance(kind, Enum) and not (database.locks_rows and in_list.is_blank_padded(kind))


def _stored_key_value_in_sql(raw: object) -> ColumnElement[Any]:
    """Return SQL that the database can compare with the column, for a stored key value that the column's type cannot convert."""
    return cast(literal(bytes(raw), LargeBinary()), Text()) if isinstance(raw, BytesOfText) else literal(raw)
