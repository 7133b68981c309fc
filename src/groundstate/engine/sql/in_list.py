"""Passes a list of values to a statement as one parameter, so that the statement's text and plan are the same for any number of values.

The condition 'this column is one of these values' gets an array on PostgreSQL, and a JSON array on SQLite if the values are numbers or
texts, which JSON keeps unchanged. Values of other types get one parameter each. Whole rows are passed to PostgreSQL as one array per
column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    CHAR,
    NCHAR,
    ColumnElement,
    Enum,
    Integer,
    String,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    select,
)

from groundstate.store.port import Database


@dataclass(frozen=True)
class ListCondition:
    """An SQL condition 'is one of these values', and the function that converts a list of values to its parameter."""

    expression: ColumnElement[bool]
    parameter: Callable[[Sequence[Any]], Any]


def is_one_of(
    database: Database, of: ColumnElement[Any], name: str, kind: Any = None, values: Callable[[], Sequence[Any]] | None = None
) -> ListCondition:
    """Return the SQL condition that `of` is one of the values passed under the parameter `name` when the statement is executed.

    values: A function without arguments that returns the values when the statement is executed. If it is None, the caller passes the
        values.
    """

    def make_parameter(as_: Callable[[Sequence[Any]], Any], **how: Any) -> Any:
        if values is None:
            return bindparam(name, **how)
        return bindparam(name, callable_=lambda: as_(values()), unique=True, **how)

    kind = of.type if kind is None else kind
    simple = isinstance(kind, Integer | String) and not isinstance(kind, Enum)
    if database.locks_rows and is_blank_padded(kind):
        # When PostgreSQL compares the column with an array of texts, it strips trailing blanks only from the column's value.
        simple = False
    if database.locks_rows and (simple or isinstance(kind, Uuid)):
        among: Any = any_(make_parameter(list, type_=ARRAY(Text() if isinstance(kind, String) else kind)))
        return ListCondition(of == among, list)
    if simple and not database.locks_rows:
        each: Any = select(literal_column("value")).select_from(func.json_each(make_parameter(_json_array, type_=Text())))
        return ListCondition(of.in_(each), _json_array)
    return ListCondition(of.in_(make_parameter(list, expanding=True)), list)


def is_blank_padded(kind: Any) -> bool:
    """Return whether PostgreSQL pads the values of a column of this type with blanks, and ignores the blanks in a comparison with a
    text.
    """
    return isinstance(kind, CHAR | NCHAR)


def rows_from_arrays(name: str, columns: Mapping[str, Any]) -> Any:
    """Return a table expression of PostgreSQL for rows that are passed as parameters: one array per column, under the column's name.

    Use it instead of an executemany, which would send one statement for each row.
    """
    # Cast to Text, since a cast to VARCHAR(n) would truncate the values.
    kinds = {one: Text() if isinstance(kind, String) else kind for one, kind in columns.items()}
    arrays = [bindparam(one, type_=ARRAY(kind)) for one, kind in kinds.items()]
    return func.unnest(*arrays).table_valued(*[column(one, kind) for one, kind in kinds.items()], name=name).render_derived()


def _json_array(values: Sequence[Any]) -> str:
    return json.dumps(list(values), ensure_ascii=False)
