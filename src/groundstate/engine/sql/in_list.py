"""Passes many values as few parameters, so that the statement's text and its plan stay the same for any number of values.

The condition 'this column is one of many values' takes an array on PostgreSQL, and on SQLite a JSON array, which keeps numbers and texts
unchanged; for other types it is a list that grows with the values. Many rows are passed on PostgreSQL as one array for each column.
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
class Listed:
    """An SQL condition on a list of values, and the function that makes its parameter of them."""

    expression: ColumnElement[bool]
    parameter: Callable[[Sequence[Any]], Any]


def one_of(
    database: Database, of: ColumnElement[Any], name: str, kind: Any = None, values: Callable[[], Sequence[Any]] | None = None
) -> Listed:
    """Return the SQL condition that `of` is one of the values that are given under `name` when the statement is executed.

    values: a function that returns them at that time instead.
    """

    def given(as_: Callable[[Sequence[Any]], Any], **how: Any) -> Any:
        if values is None:
            return bindparam(name, **how)
        return bindparam(name, callable_=lambda: as_(values()), unique=True, **how)

    kind = of.type if kind is None else kind
    simple = isinstance(kind, Integer | String) and not isinstance(kind, Enum)
    if database.locks_rows and is_padded(kind):
        simple = False  # compared with an array of texts, the column would lose its trailing blanks, and the texts would not
    if database.locks_rows and (simple or isinstance(kind, Uuid)):
        among: Any = any_(given(list, type_=ARRAY(Text() if isinstance(kind, String) else kind)))
        return Listed(of == among, list)
    if simple and not database.locks_rows:
        each: Any = select(literal_column("value")).select_from(func.json_each(given(_as_json, type_=Text())))
        return Listed(of.in_(each), _as_json)
    return Listed(of.in_(given(list, expanding=True)), list)


def is_padded(kind: Any) -> bool:
    """Whether PostgreSQL pads such a column with blanks up to its length, and ignores them in a comparison with a text."""
    return isinstance(kind, CHAR | NCHAR)


def unnested(name: str, columns: Mapping[str, Any]) -> Any:
    """Return rows as a table of PostgreSQL, with one array for each column, which is given under the column's name.

    An executemany would be one statement for each row on the server.
    """
    # Text, since a cast to VARCHAR(n) would truncate.
    kinds = {one: Text() if isinstance(kind, String) else kind for one, kind in columns.items()}
    arrays = [bindparam(one, type_=ARRAY(kind)) for one, kind in kinds.items()]
    return func.unnest(*arrays).table_valued(*[column(one, kind) for one, kind in kinds.items()], name=name).render_derived()


def _as_json(values: Sequence[Any]) -> str:
    return json.dumps(list(values), ensure_ascii=False)
