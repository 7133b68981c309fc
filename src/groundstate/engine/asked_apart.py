"""What is asked of one reaction, in a savepoint: a condition that the database cannot ask of its rows hides none of the others.

It may name a function that is not there, which any row shows, or raise for some rows alone, as a text that is no number does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from groundstate.engine import trouble

T = TypeVar("T")
OF_ONE = "its condition cannot be asked of this record"


def asked_apart(connection: Connection, ask: Callable[[], T], unasked: Callable[[DBAPIError], None]) -> T | None:
    """What `ask` brings; None where the database cannot answer that, of which `unasked` is told.

    Raises DBAPIError where the database is in trouble: the same may be answered another time.
    """
    try:
        with connection.begin_nested():
            return ask()
    except DBAPIError as error:
        if trouble.transient(error):
            raise
        unasked(error)
        return None


def cannot_be_asked(error: DBAPIError) -> str:
    """Why a condition cannot be asked of one record."""
    return f"{OF_ONE}: {trouble.said(error)}"


def why_unasked(error: DBAPIError) -> str:
    """Why a condition cannot be asked."""
    return f"its condition cannot be asked: {trouble.said(error)}"
