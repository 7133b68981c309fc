"""The customers: a thread that knows nothing of workers places orders, and cancels or deletes some by plain SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

_INSERT = text(
    "INSERT INTO orders (id, status, round, rounds, charged_round, term, insured_term) VALUES (:id, 'placed', 1, :rounds, 0, 1, 0)"
    " ON CONFLICT (id) DO NOTHING"
)
_CANCEL = text("UPDATE orders SET status = 'cancelled' WHERE id = :id AND status NOT IN ('done', 'cancelled')")
_COPY = text("INSERT INTO gone_orders SELECT * FROM orders WHERE id = :id")
_DELETE = text("DELETE FROM orders WHERE id = :id")
_UNDER_WAY = text("SELECT count(*) FROM orders WHERE status NOT IN ('done', 'cancelled')")
GIVES_UP_S = 120.0  # seconds: a database that accepts no order for this long does not come back


@dataclass
class Orders:
    """Places orders within `placing_orders`; where the result of a commit is lost, the statement is repeated until it has surely succeeded.

    most: the number of orders under way at once.
    cancels, deletes: of each hundred iterations, how many end with one.
    """

    engine: Engine
    dice: Random
    most: int
    cancels: int
    deletes: int
    placed: list[int] = field(default_factory=list)
    cancelled: int = 0
    deleted: int = 0
    failure: BaseException | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _at_work: threading.Lock = field(default_factory=threading.Lock)
    _last: int = 0  # the last number given; none is given twice, even if its order may be lost

    @contextmanager
    def placing_orders(self) -> Iterator[None]:
        """Let orders come in while the block runs. Raises the exception that stopped them."""
        thread = threading.Thread(target=self._run, name="orders", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(60)
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep orders from being placed, cancelled or deleted while the block runs."""
        with self._at_work:
            yield

    def _run(self) -> None:
        try:
            while not self._end.wait(self.dice.uniform(0.02, 0.15)):
                with self._at_work:
                    self._place_some()
        except BaseException as error:  # noqa: BLE001  # passed on to the thread that waits for this one
            self.failure = error

    def _place_some(self) -> None:
        if self._run_until_committed(lambda connection: int(connection.execute(_UNDER_WAY).scalar_one())) >= self.most:
            return
        new = range(self._last + 1, self._last + 1 + self.dice.randint(1, 5))
        rows = [{"id": number, "rounds": self.dice.choice([1, 1, 2])} for number in new]
        self._run_until_committed(lambda connection: connection.execute(_INSERT, rows).rowcount)
        self.placed += new
        self._last = new[-1]
        chance = self.dice.random() * 100
        one = {"id": self.dice.choice(self.placed[-40:])}
        if chance < self.cancels:
            self.cancelled += self._run_until_committed(lambda connection: connection.execute(_CANCEL, one).rowcount)
        elif chance < self.cancels + self.deletes:
            self.deleted += self._run_until_committed(lambda connection: self._delete_order(connection, one))

    def _delete_order(self, connection: Connection, one: dict[str, int]) -> int:
        # The row is locked first, so that the copied row is the one deleted.
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT 1 FROM orders WHERE id = :id FOR UPDATE"), one)
        connection.execute(_COPY, one)
        return connection.execute(_DELETE, one).rowcount

    def _run_until_committed(self, act: Callable[[Connection], int]) -> int:
        """Run `act` in a transaction, and repeat it where the database is in trouble; each `act` must be idempotent."""
        end = time.monotonic() + GIVES_UP_S
        while True:
            try:
                with self.engine.begin() as connection:
                    return act(connection)
            except DBAPIError:
                if time.monotonic() > end:
                    raise
                self._end.wait(0.1)
