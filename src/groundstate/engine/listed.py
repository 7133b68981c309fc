"""Many values as few parameters, so that the statement's text and its plan stay the same for any number.

'This column is one of many values': on PostgreSQL an array; on SQLite a JSON array, where numbers and texts come back as they were; of
other types a list that grows with the values. Many rows: on PostgreSQL an array for each column.
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
    """The expression, and what makes its parameter of the values."""

    expression: ColumnElement[bool]
    parameter: Callable[[Sequence[Any]], Any]


def one_of(
    database: Database, of: ColumnElement[Any], name: str, kind: Any = None, values: Callable[[], Sequence[Any]] | None = None
) -> Listed:
    """`of` is one of the values that are given under `name` when the statement is executed; `values`: or that this returns then."""

    def given(as_: Callable[[Sequence[Any]], Any], **how: Any) -> Any:
        if values is None:
            return bindparam(name, **how)
        return bindparam(name, callable_=lambda: as_(values()), unique=True, **how)

    kind = of.type if kind is None else kind
    simple = isinstance(kind, Integer | String) and not isinstance(kind, Enum)
    if database.locks_rows and is_padded(kind):
        simple = False  # beside an array of texts its blanks would be cut off, and theirs not
    if database.locks_rows and (simple or isinstance(kind, Uuid)):
        among: Any = any_(given(list, type_=ARRAY(Text() if isinstance(kind, String) else kind)))
        return Listed(of == among, list)
    if simple and not database.locks_rows:
        each: Any = select(literal_column("value")).select_from(func.json_each(given(_as_json, type_=Text())))
        return Listed(of.in_(each), _as_json)
    return Listed(of.in_(given(list, expanding=True)), list)


def is_padded(kind: Any) -> bool:
    """Whether PostgreSQL fills such a column with blanks up to its length, and leaves them out where it is compared with a text."""
    return isinstance(kind, CHAR | NCHAR)


def unnested(name: str, columns: Mapping[str, Any]) -> Any:
    """Rows as a table of PostgreSQL, one array a column, each given under the column's name: an executemany is a statement a row for it."""
    # Text, since a cast to VARCHAR(n) would cut.
    kinds = {one: Text() if isinstance(kind, String) else kind for one, kind in columns.items()}
    arrays = [bindparam(one, type_=ARRAY(kind)) for one, kind in kinds.items()]
    return func.unnest(*arrays).table_valued(*[column(one, kind) for one, kind in kinds.items()], name=name).render_derived()


def _as_json(values: Sequence[Any]) -> str:
    return json.dumps(list(values), ensure_ascii=False)
