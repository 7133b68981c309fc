"""Timers over groundstate: the command `place FIRST COUNT DUE EACH`. Its tables are made by `groundstate init`, its worker by `run`."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

from sqlalchemy import Index, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, ReactionContext, Store, UtcDateTime


class Base(DeclarativeBase): ...


class Timer(Base):
    __tablename__ = "timers"
    id: Mapped[int] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    times: Mapped[int] = mapped_column(server_default=text("0"), default=0)
    __table_args__ = (Index("timers_due", "due_at", "id", postgresql_where=text("done_at IS NULL")),)


DATABASE = os.environ.get("TIMERS_DATABASE", "sqlite:///timers.db")
app = App("timers", Store(DATABASE, Base))


@app.on(Timer, Timer.done_at.is_(None), due=Timer.due_at)
def remind(timer: Timer, ctx: ReactionContext) -> None:
    timer.done_at = ctx.now
    timer.times += 1


def place_timers(first: int, count: int, due: float, each: float) -> None:
    """Insert each timer in its own transaction; if all are due at once, in one transaction."""
    engine = create_engine(DATABASE)
    rows = [Timer(id=first + number, due_at=datetime.fromtimestamp(due + number * each, UTC)) for number in range(count)]
    step = 1 if each else max(count, 1)
    for start in range(0, count, step):
        with Session(engine) as session, session.begin():
            session.add_all(rows[start : start + step])
    engine.dispose()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["place", first, count, due, each]:
            place_timers(int(first), int(count), float(due), float(each))

# ruff: noqa: D101, D103 - this is how a user writes
