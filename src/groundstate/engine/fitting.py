"""Whether the database has what a reaction's record is mapped to. A deploy may come before its migration. Reads alone, and no row.

A condition that can be asked tells nothing of it: what loads the record names every column, and a new one is in no condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.orm import Session

from groundstate.engine import trouble
from groundstate.engine.question import Question
from groundstate.store.carried import schema_of

CURE = "run your migrations"


def misfit(connection: Connection, questions: Sequence[Question]) -> DBAPIError | None:
    """What the database said of a column or a table that these name and it has not; None where it has them all."""
    try:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            for question in questions:
                for statement in question.of_nothing:
                    session.execute(statement).close()
    except DBAPIError as error:
        if trouble.undefined(error):
            return error
        if trouble.transient(error):
            raise
    return None


def missing(connection: Connection, questions: Sequence[Question]) -> dict[str, str]:
    """Of each reaction that cannot be carried out here, what is missing, in words: 'column orders.extra is missing'."""
    if misfit(connection, questions) is None:
        return {}
    each = {question.spec.name: (question, misfit(connection, [question])) for question in questions}
    return {name: _words(connection, question, error) for name, (question, error) in each.items() if error is not None}


def with_cure(words: str) -> str:
    return f"{words}: {CURE}"


def _words(connection: Connection, question: Question, error: DBAPIError) -> str:
    names = list(_named(connection, question))
    tables, columns = [name for kind, name in names if kind == "table"], [name for kind, name in names if kind == "column"]
    return " and ".join(_are_missing(kind, some) for kind, some in (("table", tables), ("column", columns)) if some) or trouble.said(error)


def _are_missing(kind: str, names: Sequence[str]) -> str:
    return f"{kind} {names[0]} is missing" if len(names) == 1 else f"{kind}s {', '.join(names)} are missing"


def _named(connection: Connection, question: Question) -> Iterator[tuple[str, str]]:
    """What of the tables that are loaded is not there. Empty where that is none of theirs, but of a clause over other tables."""
    looked = inspect(connection)
    for table in question.tables_loaded:
        if not isinstance(table, Table):
            continue
        try:
            columns = looked.get_columns(table.name, schema=schema_of(connection, table))
        except NoSuchTableError:
            yield "table", table.fullname
            continue
        there = {column["name"].lower() for column in columns}  # SQLite takes either case
        yield from (("column", f"{table.fullname}.{column.name}") for column in table.columns if column.name.lower() not in there)
