"""`in_order`: one at a time for equal values of a column, in the order of another, in two workers and through deaths."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import ExternalService, InDoubt, InOrder, NotDone, Retry
from groundstate.engine.handle import in_order as line_module
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.operate.why import explain_record
from groundstate.engine.sql import lock_ids
from groundstate.store import connect
from tests.engine.kit import CALL_LIMIT, HANG_S, QUICK, World, ms, until
from tests.testing.planting import Change, planted

ONCE = Retry(times=1)


class Chats(DeclarativeBase):
    pass


class Message(Chats):
    __tablename__ = "messages"
    id: Mapped[int] = mapped_column(primary_key=True)
    chat: Mapped[str | None]
    number: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")


class Line:
    """The service: who was sent, in order, and who of one chat met another there. plans: what the next calls for a record meet."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.calls: list[int] = []
        self.plans: dict[int, list[str]] = {}
        self.met: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self._there: dict[str, int] = {}
        self._lock = threading.Lock()

    def send(self, one: Message) -> str:
        chat = one.chat or f"none {one.id}"
        with self._lock:
            if chat in self._there:
                self.met.append((self._there[chat], one.id))
            self._there[chat] = one.id
            self.calls.append(one.id)
        try:
            step = self.plans[one.id].pop(0) if self.plans.get(one.id) else "ok"
            if step == "refuse":
                raise NotDone("refused")
            if step == "hang":
                assert self.gate.wait(HANG_S)
            with self._lock:
                self.sent.append(one.id)
            if step == "doubt":
                raise RuntimeError("the answer was lost")
        finally:
            with self._lock:
                self._there.pop(chat, None)
        return "ok"


@pytest.fixture
def chats(database_url: str) -> Iterator[World]:
    made = World(database_url, Chats)
    yield made
    made.close()


ORDERED = InOrder(Message.chat, Message.number)


def sending(
    world: World,
    line: Line,
    in_order: InOrder = ORDERED,
    *,
    in_doubt: InDoubt | None = None,
    retry: Retry = QUICK,
    limit: int | None = None,
) -> None:
    service = ExternalService("sms", limit=limit)

    @service.call(in_doubt=in_doubt or InDoubt.repeat(), timeout=CALL_LIMIT, retry=retry)
    def send(one: Message) -> str:
        return line.send(one)

    @world.app.on(Message, Message.status == "new", call=send, in_order=in_order)
    def sent(one: Message, answer: str) -> None:
        one.status = "sent"


def write(world: World, *messages: tuple[int, str | None, int]) -> None:
    world.add(*[Message(id=key, chat=chat, number=number) for key, chat, number in messages])


def statuses(world: World) -> dict[int, str]:
    with world.session() as session:
        return {one.id: one.status for one in session.scalars(select(Message).order_by(Message.id))}


def all_sent(world: World, *keys: int) -> None:
    until(lambda: all(statuses(world)[key] == "sent" for key in keys))


def test_each_line_goes_in_its_order_and_one_at_a_time_with_two_workers(chats: World) -> None:
    line = Line()
    sending(chats, line)
    write(chats, *[(100 * chat + place, f"c{chat}", 10 - place) for chat in range(4) for place in range(5)])
    chats.worker(), chats.worker()
    all_sent(chats, *statuses(chats))
    assert not line.met
    for chat in range(4):
        assert [key for key in line.sent if key // 100 == chat] == [100 * chat + place for place in (4, 3, 2, 1, 0)]


def test_equal_places_go_by_the_primary_key_and_rows_without_a_value_have_no_order(chats: World) -> None:
    line = Line()
    sending(chats, line)
    line.plans = {2: ["hang"], 7: ["hang"]}
    write(chats, (3, "a", 1), (2, "a", 1), (5, None, 1), (7, None, 2), (6, None, 3))
    chats.worker()
    all_sent(chats, 5, 6)
    assert statuses(chats)[3] == "new"
    line.gate.set()
    all_sent(chats, 2, 3, 7)
    assert line.sent.index(2) < line.sent.index(3)


def test_w22_a_head_that_failed_is_waited_for_and_goes_first(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse", "refuse"]}
    sending(chats, line)
    write(chats, (1, "a", 1), (2, "a", 2), (3, "a", 3), (10, "b", 1))
    chats.worker(), chats.worker()
    all_sent(chats, 1, 2, 3, 10)
    assert [key for key in line.sent if key < 10] == [1, 2, 3]


def test_without_an_order_a_failed_one_stops_no_other_and_there_is_still_one_at_a_time(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse"]}
    sending(chats, line, InOrder(Message.chat), retry=Retry(first=timedelta(hours=1)))
    write(chats, *[(key, "a", key) for key in range(1, 9)])
    chats.worker(), chats.worker()
    all_sent(chats, *range(2, 9))
    assert not line.met
    assert [one.record for one in chats.attempts()] == ["1"]


def test_a_held_head_stops_those_behind_it(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse"]}
    sending(chats, line, retry=ONCE)
    write(chats, (1, "a", 1), (2, "a", 2), (3, "b", 1))
    life = chats.worker()
    all_sent(chats, 3)
    until(lambda: chats.states() == ["held"])
    life.sweep()
    life.sweep()
    assert line.calls.count(2) == 0


def test_past_held_lets_those_behind_a_held_head_go_where_it_is_sure(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse"], 11: ["doubt"]}
    sending(chats, line, InOrder(Message.chat, Message.number, past_held=True), retry=ONCE, in_doubt=InDoubt.hold())
    write(chats, (1, "a", 1), (2, "a", 2), (11, "b", 1), (12, "b", 2))
    life = chats.worker()
    all_sent(chats, 2)
    until(lambda: chats.states() == ["held", "held"])
    life.sweep()
    life.sweep()
    assert 12 not in line.calls, "11 may have been sent, and nobody knows"


def test_one_in_doubt_keeps_its_line_though_its_record_moved_on(chats: World) -> None:
    line = Line()
    line.plans = {1: ["doubt"]}
    sending(chats, line, in_doubt=InDoubt.hold())
    write(chats, (1, "a", 1), (2, "a", 2))
    life = chats.worker()
    until(lambda: chats.states() == ["held"])
    chats.run("update messages set status = 'cancelled' where id = 1")
    life.sweep()
    life.sweep()
    assert 2 not in line.calls


def test_one_whose_record_moved_on_keeps_its_line_while_its_call_is_in_the_air(chats: World) -> None:
    line = Line()
    line.plans = {1: ["hang"]}
    sending(chats, line)
    write(chats, (1, "a", 1), (2, "a", 2))
    one, two = chats.worker(), chats.worker()
    until(lambda: line.calls == [1])
    chats.run("update messages set status = 'cancelled' where id = 1")
    for life in (one, two, one):
        life.sweep()
    assert line.calls == [1]
    line.gate.set()
    until(lambda: chats.states() in ([], ["held"]))
    assert not line.met


def test_an_earlier_row_that_comes_late_waits_for_the_one_in_the_air(chats: World) -> None:
    line = Line()
    line.plans = {5: ["hang"]}
    sending(chats, line)
    write(chats, (5, "a", 5))
    one, two = chats.worker(), chats.worker()
    until(lambda: line.calls == [5])
    write(chats, (1, "a", 1), (6, "a", 6))
    for life in (one, two, one):
        life.sweep()
    assert line.calls == [5]
    line.gate.set()
    all_sent(chats, 5, 1, 6)
    assert line.sent == [5, 1, 6]
    assert not line.met


def test_a_worker_that_dies_with_a_head_in_the_air_leaves_its_line_to_the_next(chats: World) -> None:
    line = Line()
    line.plans = {1: ["hang"]}
    sending(chats, line)
    write(chats, (1, "a", 1), (2, "a", 2), (11, "b", 1))
    one = chats.worker()
    until(lambda: 1 in line.calls)
    one.kill()
    line.gate.set()
    until(lambda: 1 in line.sent)
    chats.worker()
    all_sent(chats, 1, 2, 11)
    assert line.sent.index(2) > max(place for place, key in enumerate(line.sent) if key == 1)


@pytest.mark.parametrize("in_order", [ORDERED, InOrder(Message.chat)], ids=["in order", "one at a time"])
def test_after_a_restore_what_is_all_in_doubt_is_called_again_one_at_a_time(chats: World, in_order: InOrder) -> None:
    line = Line()
    sending(chats, line, in_order, in_doubt=InDoubt.repeat())
    write(chats, *[(key, "a", 10 - key) for key in range(1, 5)], (9, "b", 1))
    chats.worker(after_restore=True)
    all_sent(chats, 1, 2, 3, 4, 9)
    assert not line.met
    in_line = [key for key in line.sent if key < 9]
    assert in_line == ([4, 3, 2, 1] if in_order is ORDERED else [1, 2, 3, 4])


def test_what_a_person_tries_again_goes_before_those_behind_it(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse"]}
    sending(chats, line, retry=ONCE)
    write(chats, (1, "a", 1), (2, "a", 2))
    chats.worker()
    until(lambda: chats.states() == ["held"])
    chats.force("update groundstate_attempt set state = 'failed', failures = 0, next_at = since, why = null")
    all_sent(chats, 1, 2)
    assert line.sent == [1, 2]


def test_why_and_pending_say_behind_whom_a_record_waits(chats: World) -> None:
    line = Line()
    line.plans = {1: ["refuse"]}
    sending(chats, line, retry=ONCE)
    write(chats, (1, "a", 1), (2, "a", 2))
    life = chats.worker()
    until(lambda: chats.states() == ["held"])
    database, lives, _ = connect.open_store(chats.app.stores[0].settings())
    question = life.worker.queues[0].query
    said = explain_record("shop", life.database, [question], lives(), "messages", "2")
    assert said.answers[0].next == "waits for its turn behind record 1"
    report = build_pending_report("shop", life.database, [question], lives())
    assert [(one.record, one.waits_for) for one in report.waits] == [("2", "its turn behind record 1")]
    database.close()


def test_a_hundred_lines_do_not_wait_for_one_that_is_long(chats: World) -> None:
    line = Line()
    sending(chats, line, limit=4)
    write(chats, *[(key, "long", key) for key in range(1, 101)], *[(1000 + key, f"c{key}", 1) for key in range(30)])
    chats.worker()
    all_sent(chats, *range(1000, 1030))
    assert line.sent.index(1029) < 80
    assert [key for key in line.sent if key < 1000] == sorted(key for key in line.sent if key < 1000)


def test_rows_that_are_heard_of_in_another_order_wait_for_their_turn_and_would_not_if_nobody_asked_again(chats: World) -> None:
    def in_order() -> bool:
        line = Line()
        sending(chats, line)
        chats.there()
        life = chats.worker(wait_for_go=True)
        write(chats, *[(key, "a", 20 - key) for key in range(1, 11)])
        life.worker.begin_work()
        all_sent(chats, *range(1, 11))
        life.stop()
        return line.sent == [*range(10, 0, -1)]

    assert in_order()
    chats.run("delete from messages")
    chats.app.reactions.clear()
    with planted(Change(line_module, "find_places_of_records_in_turn", "if not asked.must_keep_order:", "if True:")):
        assert not in_order()


@pytest.mark.parametrize("locks", [True, False])
def test_two_workers_that_ask_at_one_moment_would_both_begin_without_a_lock(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    world, line, meet = World(postgres_url, Chats), Line(), threading.Barrier(2)
    line.plans = {1: ["hang"], 2: ["hang"]}
    sending(world, line, InOrder(Message.chat))
    write(world, (1, "a", 1), (2, "a", 2))
    real = lock_ids.try_transaction_locks

    def both_ask(tx: Any, names: Any) -> Any:
        got = real(tx, names) if locks else set(names)
        with suppress(threading.BrokenBarrierError):
            meet.wait(HANG_S)
        return got

    monkeypatch.setattr(line_module, "try_transaction_locks", both_ask)
    one, two = world.worker(wait_for_go=True), world.worker(wait_for_go=True)
    two.worker.queues[0].rows.add_fresh_keys([(2,)])
    one.worker.begin_work()
    until(lambda: meet.n_waiting == 1)
    two.worker.begin_work()
    begun = 1 if locks else 2
    until(lambda: bool(line.calls))
    meet.abort()  # one of them may ask once more before it commits
    until(lambda: len(line.calls) >= begun)
    for life in (one, two):
        life.sweep()
        life.turn()
    assert len(line.calls) == begun
    line.gate.set()
    world.close()


# ---- without a call ------------------------------------------------------------------------------------------------------------
def test_a_reaction_without_a_call_goes_in_order_with_two_workers(chats: World) -> None:
    done: list[int] = []

    @chats.app.on(Message, Message.status == "new", in_order=ORDERED)
    def read(one: Message) -> None:
        one.status = "sent"
        done.append(one.id)

    write(chats, *[(100 * chat + place, f"c{chat}", place) for chat in range(3) for place in range(1, 7)], (900, None, 1))
    chats.worker(), chats.worker()
    all_sent(chats, *statuses(chats))
    for chat in range(3):
        assert [key for key in done if key // 100 == chat] == [100 * chat + place for place in range(1, 7)]


def test_a_reaction_without_a_call_waits_for_a_head_whose_handler_raises(chats: World) -> None:
    done: list[int] = []
    broken = [1, 1]

    @chats.app.on(Message, Message.status == "new", in_order=ORDERED, retry=Retry(first=ms(5), longest=ms(10)))
    def read(one: Message) -> None:
        if broken and one.id == broken[0]:
            broken.pop()
            raise ValueError("not yet")
        one.status = "sent"
        done.append(one.id)

    write(chats, (1, "a", 1), (2, "a", 2), (3, "a", 3), (4, "b", 1))
    chats.worker()
    all_sent(chats, 1, 2, 3, 4)
    assert [key for key in done if key < 4] == [1, 2, 3]


@pytest.mark.usefixtures("whole_batches")
def test_many_of_a_line_are_carried_out_in_one_transaction_as_long_as_nobody_touches_the_next(chats: World) -> None:
    done: list[int] = []
    broken = [30]

    @chats.app.on(Message, Message.status == "new", in_order=ORDERED, retry=Retry(first=ms(5), longest=ms(10)))
    def read(one: Message, session: Session) -> None:
        if one.id in broken and broken.pop():
            raise ValueError("not yet")
        if one.id == 10:
            session.get_one(Message, 12).status = "cancelled"
        if one.id == 20:
            session.execute(update(Message).where(Message.id == 22).values(status="cancelled"))
        one.status = "sent"
        done.append(one.id)

    write(chats, *[(key, "a", key) for key in range(1, 61)])
    before = chats.worker(wait_for_go=True)
    transactions = before.transactions
    before.worker.begin_work()
    all_sent(chats, *(key for key in range(1, 61) if key not in (12, 22)))
    assert statuses(chats)[12] == statuses(chats)[22] == "cancelled"
    assert 12 not in done
    assert 22 not in done
    lasting = list(dict.fromkeys(reversed(done)))[::-1]  # the last time that each was run: some were rolled back with the one that failed
    assert lasting == sorted(lasting)
    assert before.transactions - transactions < 40


def test_rows_left_alone_as_a_baseline_stand_in_nobodys_way(chats: World) -> None:
    line = Line()
    sending(chats, line)
    chats.app.init(tables=True)
    chats._there = True
    write(chats, (1, "a", 1), (2, "a", 2))
    chats.app.init(baseline=["sent"])
    write(chats, (3, "a", 3))
    chats.worker()
    all_sent(chats, 3)
    assert line.calls == [3]
