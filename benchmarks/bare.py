"""The bare driver, sqlite3 or psycopg, with the durability that groundstate requires: the lower bound for any program on that driver.

As a program, `python -m benchmarks.bare fetch|ask|insert URL ...`, it plays the other processes of some workloads. It imports nothing of
groundstate.
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
    """One connection of the bare driver. In statements, `?` stands for a value."""

    def __init__(self, url: str) -> None:
        self.embedded = url.startswith("sqlite")
        self.connection: Any
        if self.embedded:
            self.connection = import_module("sqlite3").connect(sqlite_path(url), isolation_level=None, timeout=5, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
        else:
            self.connection = import_module("psycopg").connect(url.replace("+psycopg", ""), autocommit=True)
        self.locks = "" if self.embedded else " FOR NO KEY UPDATE SKIP LOCKED"
        self.among = "IN (SELECT value FROM json_each(?))" if self.embedded else "= ANY(?)"

    def execute(self, statement: str, *values: Any) -> Any:
        """Execute the statement and return its cursor."""
        return self.connection.execute(statement if self.embedded else statement.replace("?", "%s"), values)

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Execute the statement once for each row of values."""
        cursor = self.connection.cursor()
        cursor.executemany(statement if self.embedded else statement.replace("?", "%s"), rows)

    def bind_many(self, values: Sequence[Any]) -> Any:
        """Return the values as the one parameter that the expression `among` takes."""
        return json.dumps(values) if self.embedded else list(values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction, which is committed at its end."""
        self.connection.execute("BEGIN IMMEDIATE" if self.embedded else "BEGIN")
        yield
        self.connection.execute("COMMIT")

    def fetch_number(self, statement: str, *values: Any) -> int:
        """Execute a query and return its one number."""
        return int(self.execute(statement, *values).fetchone()[0])

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def sqlite_path(url: str) -> str:
    """Return the path of the file that an SQLite URL names."""
    return url.removeprefix("sqlite:///")


def fetch_unfinished_orders(url: str) -> None:
    """Read all unfinished orders once."""
    print(len(Driver(url).execute(UNFINISHED).fetchall()), flush=True)


def poll_every_second(url: str) -> None:
    """Ask every second whether there are unfinished orders, until the process is killed."""
    driver = Driver(url)
    print("asking", flush=True)
    while True:
        driver.execute(UNFINISHED).fetchall()
        time.sleep(1)


def insert_repeatedly(url: str, table: str, seconds: float, pause_s: float) -> None:
    """For `seconds`, insert and commit a row after each pause. Print [id, begun, committed] for each row, and each error."""
    driver = Driver(url)
    statement = f"INSERT INTO {table} (status) VALUES ('placed') RETURNING id"
    print("inserting", flush=True)
    rows: list[tuple[int, float, float]] = []
    errors: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        try:
            number = driver.fetch_number(statement)
        except driver.connection.Error as error:
            errors.append(str(error))
        else:
            rows.append((number, begun, time.monotonic()))
        time.sleep(pause_s)
    print(json.dumps({"rows": rows, "errors": errors}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fetch", url]:
            fetch_unfinished_orders(url)
        case ["ask", url]:
            poll_every_second(url)
        case ["insert", url, table, seconds, pause_s]:
            insert_repeatedly(url, table, float(seconds), float(pause_s))
        case _:
            sys.exit(__doc__)
