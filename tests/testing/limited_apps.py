"""Apps with limits, a rate, parts and lines, and faults of the engine that break what they promise. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, IdempotencyKey, InDoubt, InOrder, Rate, Retry, Store, Unknown
from groundstate.engine.call import limiter, rate_limit
from groundstate.engine.handle import in_order
from groundstate.testing import Lab
from tests.testing.planting import Change
from tests.testing.searching import Search, at, moods, two_workers

SPAN = timedelta(seconds=5)
TIMES = 2
TIMEOUT = timedelta(seconds=2)  # all of them short, since a worker that waits looks round each second
ASK = InDoubt.lookup(settle_after=timedelta(seconds=2))
RETRY = Retry(first=timedelta(seconds=1), times=4)


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "messages"
    id: Mapped[int] = mapped_column(primary_key=True)
    chat: Mapped[str]
    number: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


@dataclass(eq=False)
class Case:
    """An app, its rows, and what must be true after each commit: told what was done outside, each with its moment."""

    app: App
    rows: Callable[[], list[object]]
    calls: Sequence[Any] = ()
    always: Callable[[Session, Sequence[Any]], None] = lambda _session, _entries: None

    def run(self, lab: Lab, **how: Any) -> None:
        ledgers = [lab.fake(call, lambda message: f"sent {message.id}") for call in self.calls]
        lab.crash_everywhere(
            self.app, *self.rows(), always=lambda session: self.always(session, [one for some in ledgers for one in some.entries]), **how
        )


def _sending(name: str, service: ExternalService, in_doubt: InDoubt = ASK, **options: Any) -> tuple[App, Any]:
    app = App(f"limited-{name}", Store("sqlite:///limited.db", Base))

    @service.call(in_doubt=in_doubt, timeout=TIMEOUT, retry=RETRY)
    def send(message: Message, key: IdempotencyKey) -> str:
        raise AssertionError("the lab's fake is called instead")

    if in_doubt is ASK:

        @send.lookup
        def find(message: Message, key: IdempotencyKey) -> str | Absent | Unknown:
            raise AssertionError("the lab's fake is asked instead")

    @app.on(Message, Message.status == "new", call=send, **options)
    def sent(message: Message, answer: str) -> None:
        message.status = "sent"

    return app, send


def _line(*numbers: int, chat: str = "a", first: int = 1) -> list[object]:
    return [Message(id=first + place, chat=chat, number=number) for place, number in enumerate(numbers)]


def in_their_order(_session: Session, entries: Sequence[Any]) -> None:
    """What was done of each line was done in its order."""
    for chat in {one.argument.chat for one in entries}:
        order = [one.argument.number for one in entries if one.argument.chat == chat]
        assert order == sorted(order), f"chat {chat} was sent in the order {order}"


def one_at_a_time(session: Session, _entries: Sequence[Any]) -> None:
    """No line has two calls that may be under way."""
    found = session.execute(text(
        "select m.chat, count(*) from messages m join groundstate_attempt a on a.record = cast(m.id as text)"
        " where a.state = 'begun' or a.unsure group by m.chat having count(*) > 1"
    )).all()  # fmt: skip
    assert not found, f"more than one at a time: {found}"


def within_the_rate(_session: Session, entries: Sequence[Any]) -> None:
    """No span has more than the rate."""
    for first in entries:
        near = [one for one in entries if first.done_s <= one.done_s < first.done_s + SPAN.total_seconds() - 1]
        assert len(near) <= TIMES, f"{len(near)} calls within {SPAN}"


def _lined() -> Case:
    app, send = _sending("lined", ExternalService("sms", limit=2), in_order=InOrder(Message.chat, Message.number))
    return Case(app, lambda: [*_line(3, 2, 1), *_line(1, chat="b", first=9)], [send], in_their_order)


def _one_each() -> Case:
    app, send = _sending("one-each", ExternalService("sms", limit_per=1), in_order=InOrder(Message.chat), per=Message.chat)
    return Case(app, lambda: _line(1, 2), [send], one_at_a_time)


def _rated() -> Case:
    app, send = _sending(
        "rated", ExternalService("sms", rate=Rate(TIMES, SPAN), rate_per=Rate(TIMES, SPAN)), InDoubt.repeat(), per=Message.chat
    )
    return Case(app, lambda: _line(1, 2, 3), [send], within_the_rate)


def _read() -> Case:
    app = App("limited-read", Store("sqlite:///limited.db", Base))

    @app.on(Message, Message.status == "new", in_order=InOrder(Message.chat, Message.number), retry=RETRY)
    def read(message: Message, session: Session) -> None:
        earlier = session.query(Message).filter(Message.chat == message.chat, Message.number < message.number, Message.status == "new")
        assert earlier.count() == 0, "an earlier one was not read yet"
        message.status = "read"

    return Case(app, lambda: _line(3, 1, 2))


LINED, ONE_EACH, RATED, READ = _lined(), _one_each(), _rated(), _read()
CASES = [LINED, ONE_EACH, RATED, READ]


@dataclass(frozen=True)
class Planted:
    """What is wrong, the app and the schedules that show it, and the invariant that breaks."""

    words: str
    case: Case
    search: Search
    invariant: str
    changes: Sequence[Change]


DIES = at("die", "call", "done")
WORKERS = two_workers("call", "answered")

PLANTED = [
    Planted(
        "a token that was spent is not counted", RATED, DIES, "assertion",
        [Change(rate_limit.Tokens, "write_counts", "self._spent[place])", "0)")],
    ),
    Planted(
        "counts are kept in the memory of a worker alone", RATED, DIES, "assertion",
        [Change(rate_limit.Tokens, "write_counts", "if rows:", "if False:")],
    ),
    Planted(
        "what has landed is counted as if it flew", LINED, moods(["refused"]), "Progress",
        [Change(limiter.Limits, "count_ended_call", "_subtract_call(self._air, in_flight)", "pass")],
    ),
    Planted(
        "what is in doubt does not count for its line", ONE_EACH, moods(["answer-lost"], ["late"]), "assertion",
        [Change(in_order, "find_places_of_records_in_turn", "if value not in taken", "if True")],
    ),
]  # fmt: skip
