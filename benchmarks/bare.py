"""The driver alone, sqlite3 or psycopg, with the durability that groundstate demands: what nobody on that driver can be quicker than.

As a program: `python -m benchmarks.bare fetch|ask|insert URL ...`, the other processes of some workloads. Imports nothing of groundstate.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

UNFINISHED = "SELECT id, status FROM orders WHERE status = 'placed' ORDER BY id LIMIT 1000"


class Driver:
    """One connection of the bare driver. Statements are written with `?`."""

    def __init__(self, url: str) -> None:
        self.embedded = url.startswith("sqlite")
        self.connection: Any
        if self.embedded:
            self.connection = import_module("sqlite3").connect(path_of(url), isolation_level=None, timeout=5, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
        else:
            self.connection = import_module("psycopg").connect(url.replace("+psycopg", ""), autocommit=True)
        self.locks = "" if self.embedded else " FOR NO KEY UPDATE SKIP LOCKED"
        self.among = "IN (SELECT value FROM json_each(?))" if self.embedded else "= ANY(?)"

    def execute(self, statement: str, *values: Any) -> Any:
        """Its cursor."""
        return self.connection.execute(statement if self.embedded else statement.replace("?", "%s"), values)

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Once for each row."""
        cursor = self.connection.cursor()
        cursor.executemany(statement if self.embedded else statement.replace("?", "%s"), rows)

    def many(self, values: Sequence[Any]) -> Any:
        """The one value that `among` wants."""
        return json.dumps(values) if self.embedded else list(values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Committed at the end of the block."""
        self.connection.execute("BEGIN IMMEDIATE" if self.embedded else "BEGIN")
        yield
        self.connection.execute("COMMIT")

    def number(self, statement: str, *values: Any) -> int:
        """The one number that it gives."""
        return int(self.execute(statement, *values).fetchone()[0])

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()


def path_of(url: str) -> str:
    """The file of a URL of SQLite."""
    return url.removeprefix("sqlite:///")


def fetch(url: str) -> None:
    """What is unfinished, once."""
    print(len(Driver(url).execute(UNFINISHED).fetchall()), flush=True)


def ask(url: str) -> None:
    """The same question each second, until killed."""
    driver = Driver(url)
    print("asking", flush=True)
    while True:
        driver.execute(UNFINISHED).fetchall()
        time.sleep(1)


def insert(url: str, table: str, seconds: float, pause_s: float) -> None:
    """One row and a commit after each pause, for so many seconds. Tells [id, begun, committed] of each, and each error."""
    driver = Driver(url)
    statement = f"INSERT INTO {table} (status) VALUES ('placed') RETURNING id"
    print("inserting", flush=True)
    rows: list[tuple[int, float, float]] = []
    errors: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        try:
            number = driver.number(statement)
        except driver.connection.Error as error:
            errors.append(str(error))
        else:
            rows.append((number, begun, time.monotonic()))
        time.sleep(pause_s)
    print(json.dumps({"rows": rows, "errors": errors}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fetch", url]:
            fetch(url)
        case ["ask", url]:
            ask(url)
        case ["insert", url, table, seconds, pause_s]:
            insert(url, table, float(seconds), float(pause_s))
        case _:
            sys.exit(__doc__)
