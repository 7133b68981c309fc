"""'This column is one of many values', as one parameter, so that the statement's text and its plan stay the same for any number.

PostgreSQL: an array. SQLite: a JSON array, where numbers and texts come back as they were. Other types: a list that grows with the values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Enum, Integer, String, Text, Uuid, any_, bindparam, func, literal_column, select

from groundstate.store.port import Database


@dataclass(frozen=True)
class Listed:
    """The expression, and what makes its parameter of the values."""

    expression: ColumnElement[bool]
    parameter: Callable[[Sequence[Any]], Any]


def one_of(database: Database, column: ColumnElement[Any], name: str, kind: Any = None) -> Listed:
    """`column` is one of the values that are given under `name` when the statement is executed."""
    kind = column.type if kind is None else kind
    simple = isinstance(kind, Integer | String) and not isinstance(kind, Enum)
    if database.locks_rows and (simple or isinstance(kind, Uuid)):
        among: Any = any_(bindparam(name, type_=ARRAY(Text() if isinstance(kind, String) else kind)))
        return Listed(column == among, list)
    if simple and not database.locks_rows:
        values: Any = select(literal_column("value")).select_from(func.json_each(bindparam(name, type_=Text())))
        return Listed(column.in_(values), _as_json)
    return Listed(column.in_(bindparam(name, expanding=True)), list)


def _as_json(values: Sequence[Any]) -> str:
    return json.dumps(list(values), ensure_ascii=False)
