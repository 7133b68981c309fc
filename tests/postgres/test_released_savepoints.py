"""A savepoint that was rolled back to is left: what groundstate writes after it has the number of the transaction.

Otherwise the row of a worker would look as if somebody had put the database back, and no call would be sent until a person had spoken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, ExternalService, InDoubt, NotDone, Retry, Store
from tests.patience import HANG_S

LETTERS = 20
BAD = 8
ONCE = Retry(times=1)


class Base(DeclarativeBase):
    pass


class Letter(Base):
    __tablename__ = "savepoint_letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    sent: Mapped[str | None]


def _read(session: Session) -> None:
    session.scalars(select(Letter).where(Letter.id == 1)).all()


def _caught(session: Session) -> None:
    """A savepoint of the user's own, whose failure he catches."""
    with suppress(DBAPIError), session.begin_nested():
        session.execute(text("SELECT 1 / 0"))


def _caught_within_another(session: Session) -> None:
    with suppress(ZeroDivisionError), session.begin_nested():
        _caught(session)
        raise ZeroDivisionError


class Post:
    """Letters that are sent by calls; what is done before a call, with its outcome, and when no try is left."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.app = App("post", Store(url, Base))
        self.before: Callable[[Letter, Session], None] = _nothing
        self.after: Callable[[Letter, Session], None] = _nothing
        self.gave_up: Callable[[Letter, Session], None] = _nothing
        service = ExternalService("post", limit=4)

        @service.call(in_doubt=InDoubt.repeat(), retry=ONCE)
        def send(letter: int) -> str:
            if letter == BAD:
                raise NotDone("it is refused")
            return f"sent {letter}"

        def made(letter: Letter, session: Session) -> int:
            self.before(letter, session)
            return letter.id

        @self.app.on(Letter, Letter.sent.is_(None), call=send, prepare=made)
        def sent(letter: Letter, outcome: str, session: Session) -> None:
            self.after(letter, session)
            letter.sent = outcome

        @sent.gave_up
        def sent_gave_up(letter: Letter, failure: Any, session: Session) -> None:
            self.gave_up(letter, session)
            letter.sent = "given up"

    def carried_out(self) -> dict[int, str | None]:
        self.app.init(tables=True, accept=True)
        engine = create_engine(self.url)
        with Session(engine) as session, session.begin():
            session.add_all([Letter(id=number) for number in range(1, LETTERS + 1)])
        self.app.run_until_idle(timedelta(seconds=HANG_S))
        with Session(engine) as session:
            found = {letter.id: letter.sent for letter in session.scalars(select(Letter).order_by(Letter.id))}
        engine.dispose()
        return found


def _nothing(_letter: Letter, _session: Session) -> None:
    pass


def _fails_for_one(letter: Letter, session: Session) -> None:
    _read(session)
    if letter.id == BAD:
        raise KeyError("words")


def _of_each(act: Callable[[Session], None]) -> Callable[[Letter, Session], None]:
    return lambda _letter, session: act(session)


@pytest.mark.parametrize("where", ["before", "after", "gave_up"])
@pytest.mark.parametrize(
    "what", [_fails_for_one, _of_each(_caught), _of_each(_caught_within_another)], ids=["it fails", "caught", "caught within another"]
)
def test_after_a_savepoint_that_failed_nothing_looks_as_if_the_database_had_been_put_back(
    postgres_url: str, where: str, what: Callable[[Letter, Session], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "groundstate")
    post = Post(postgres_url)
    setattr(post, where, what)
    found = post.carried_out()
    assert "put back" not in caplog.text
    # Of the one that is refused it is not waited for what comes of it.
    good = [f"sent {number}" for number in range(1, LETTERS + 1) if number != BAD]
    assert [words for number, words in found.items() if number != BAD] == good
