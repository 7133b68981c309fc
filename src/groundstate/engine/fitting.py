"""Whether the database has what a reaction's record is mapped to, and finds records by their keys. A deploy may come before its migration.

A condition that can be asked tells nothing of it: what loads the record names every column, and a new one is in no condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Connection, Table, inspect, literal, select
from sqlalchemy.exc import DBAPIError, NoSuchTableError
from sqlalchemy.orm import Session

from groundstate.engine import key_columns, trouble
from groundstate.engine.question import Question
from groundstate.store.carried import schema_of

CURE = "run your migrations"


def misfit(connection: Connection, questions: Sequence[Question], *, rights: bool = False) -> DBAPIError | None:
    """What the database said of a column or a table that these name and it has not; None where it has them all. rights: or of one that this
    role may not read.
    """
    try:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            for question in [one for one in questions if one.filter_raised is None]:  # its listener would raise for these as well
                for statement in question.of_nothing:
                    session.execute(statement).close()
    except DBAPIError as error:
        if trouble.undefined(error) or (rights and trouble.denied(error)):
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


def lacking(connection: Connection, questions: Sequence[Question]) -> dict[str, str]:
    """Of each reaction that no worker carries out here, why, with the cure: what is missing, a listener that raises for its records, or a
    key that does not lead to them.
    """
    found = {name: f"{words}: {CURE}" for name, words in missing(connection, questions).items()}
    for question in questions:
        why = None if question.spec.name in found else question.filter_raised or key_columns.refused(connection, question)
        if why is not None:
            found[question.spec.name] = str(why)
    return found


def unaskable(connection: Connection, questions: Sequence[Question], lacks: Mapping[str, str]) -> dict[str, str]:
    """Of those that lack something the ones whose condition names it, so that nothing can be asked of them, and why."""
    found = {}
    for question in questions:
        name = question.spec.name
        if name not in lacks:
            continue
        try:
            with connection.begin_nested():
                connection.execute(select(literal(1)).select_from(question.entity).where(question.ready).limit(0))
        except DBAPIError as error:
            if not trouble.undefined(error):
                raise
            found[name] = lacks[name]
    return found


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
