"""The recipes of docs/recipes.md for deadlines of a process, as they stand there, under a clock that is moved."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text

from groundstate.engine.operate.check import check_database
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect
from tests.docs.blocks import ROOT, blocks_of
from tests.engine.kit import Base, World

DAY, HOUR, MINUTE = 86_400.0, 3_600.0, 60.0


class Part(World):
    """The part of the page, run on a fresh database."""

    def __init__(self, url: str) -> None:
        super().__init__(url, Base)
        page = ROOT / "docs" / "recipes.md"
        lines = page.read_text().splitlines()
        begins = lines.index("## Deadlines of a process") + 1
        self.page: Any = ModuleType("deadlines_of_recipes")
        sys.modules[self.page.__name__] = self.page  # where annotations look names up
        for block in blocks_of(page):
            if block.language == "python" and block.line > begins:
                exec(block.code.replace("sqlite:///deadlines.db", url), self.page.__dict__)
        self.app = self.page.app

    @property
    def sent(self) -> list[str]:
        found: list[str] = self.page.sent
        return found

    def after(self, seconds: float) -> None:
        """The clock is moved, and what there is then is carried out."""
        self.forward(seconds)
        life = self.lives[0] if self.lives else self.worker()
        life.quiet()

    def at(self, seconds: float = 0.0) -> datetime:
        """A time so long after the clock as it stands now."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead + seconds)

    def one(self, kind: type) -> Any:
        return self.get(kind, 1)

    def change(self, kind: type, **values: Any) -> None:
        with self.session() as session, session.begin():
            record: Any = session.get_one(kind, 1)
            for name, value in values.items():
                setattr(record, name, value)


@pytest.fixture
def part(sqlite_url: str) -> Iterator[Part]:
    made = Part(sqlite_url)
    yield made
    made.close()


@pytest.fixture
def on_each(database_url: str) -> Iterator[Part]:
    """The same, on each store in turn: where somebody else is at work meanwhile, or a doubt is to be settled."""
    made = Part(database_url)
    yield made
    made.close()


# ---- 17: cancel what is not paid ------------------------------------------------------------------------------------------------
def test_an_order_that_nobody_pays_is_cancelled_after_24_hours_and_not_before(part: Part) -> None:
    part.add(part.page.Order(id=1, placed_at=part.at()))
    part.after(23 * HOUR)
    assert part.one(part.page.Order).status == "placed"
    part.after(2 * HOUR)
    assert part.one(part.page.Order).status == "cancelled"


def test_a_charge_that_is_in_doubt_at_its_deadline_and_was_made_pays_the_order(on_each: Part) -> None:
    part = on_each

    def cut_off(_card: str, _key: str) -> str:
        raise OSError("the line went dead")

    part.page.post_charge = cut_off
    part.add(part.page.Order(id=1, placed_at=part.at(-23 * HOUR), card="4242"))
    part.after(0)
    assert part.states() == ["doubt"]
    part.page.look_up = lambda key: f"R-{key[:6]}"
    part.after(3 * HOUR)
    order = part.one(part.page.Order)
    assert (order.status, order.receipt[:2], part.states()) == ("paid", "R-", [])


def test_a_charge_that_is_in_doubt_at_its_deadline_and_was_not_made_cancels_the_order(on_each: Part) -> None:
    part = on_each
    charged: list[str] = []

    def cut_off(_card: str, key: str) -> str:
        charged.append(key)
        raise OSError("the line went dead")

    part.page.post_charge = cut_off
    part.add(part.page.Order(id=1, placed_at=part.at(-23 * HOUR), card="4242"))
    part.after(0)
    part.after(3 * HOUR)
    assert (part.one(part.page.Order).status, part.states(), len(charged)) == ("cancelled", [], 1)


def test_no_charge_goes_out_later_than_24_hours(part: Part) -> None:
    charged: list[str] = []
    part.page.post_charge = lambda card, _key: charged.append(card)
    part.add(part.page.Order(id=1, placed_at=part.at(-25 * HOUR), card="4242"))
    part.after(0)
    assert (part.one(part.page.Order).status, charged) == ("cancelled", [])


# ---- 18: escalate -----------------------------------------------------------------------------------------------------------------
def test_a_ticket_is_reminded_of_twice_and_then_handed_to_a_person(part: Part) -> None:
    part.add(part.page.Ticket(id=1, email="ada", opened_at=part.at()))
    steps = []
    for _ in range(8):
        part.after(DAY)
        steps.append((part.one(part.page.Ticket).step, len(part.sent)))
    first, second, last = ("reminded", 1), ("reminded twice", 2), ("with a person", 2)
    assert steps == [first, first, second, second, second, second, last, last]


def test_after_four_days_down_one_reminder_goes_out_and_not_two(on_each: Part) -> None:
    part = on_each
    part.add(part.page.Ticket(id=1, email="ada", opened_at=part.at()))
    part.after(4 * DAY)
    assert (part.one(part.page.Ticket).step, len(part.sent)) == ("reminded twice", 1)


def test_after_a_month_down_nothing_stale_is_sent(part: Part) -> None:
    part.add(part.page.Ticket(id=1, email="ada", opened_at=part.at()))
    part.after(30 * DAY)
    assert (part.one(part.page.Ticket).step, part.sent) == ("with a person", [])


def test_an_answer_ends_the_chain(part: Part) -> None:
    part.add(part.page.Ticket(id=1, email="ada", opened_at=part.at()))
    part.after(DAY)
    part.change(part.page.Ticket, step="answered")
    part.after(9 * DAY)
    assert (part.one(part.page.Ticket).step, len(part.sent)) == ("answered", 1)


# ---- 19: a cap -------------------------------------------------------------------------------------------------------------------
def test_five_reminders_go_out_and_no_sixth(part: Part) -> None:
    part.add(part.page.Invoice(id=1, email="ada", remind_at=part.at(-1)))
    part.after(0)
    for _ in range(6):
        part.after(7 * DAY)
    assert [line[-1] for line in part.sent] == ["1", "2", "3", "4", "5"]
    assert part.one(part.page.Invoice).status == "for collection"


def test_a_month_down_is_one_reminder(part: Part) -> None:
    part.add(part.page.Invoice(id=1, email="ada", remind_at=part.at(-30 * DAY)))
    part.after(0)
    assert len(part.sent) == 1
    part.change(part.page.Invoice, status="paid")
    part.after(30 * DAY)
    assert len(part.sent) == 1


# ---- 20: debounce ---------------------------------------------------------------------------------------------------------------
def test_a_document_is_indexed_five_minutes_after_its_last_edit(part: Part) -> None:
    page = part.page.Page
    part.add(page(id=1, words="a", edited_at=part.at()))
    for words in ("ab", "abc"):
        part.after(3 * MINUTE)
        part.change(page, words=words, edited_at=part.at(), version=page.version + 1)
    part.after(4 * MINUTE)
    assert part.sent == []
    part.after(2 * MINUTE)
    assert (part.sent, part.one(page).indexed) == (["index: 1 abc"], 3)


def test_an_edit_while_the_index_is_written_is_indexed_five_minutes_later(on_each: Part) -> None:
    part = on_each
    page = part.page.Page
    part.add(page(id=1, words="a", edited_at=part.at(-HOUR)))
    part.page.sent = Interrupted(lambda: part.change(page, words="b", edited_at=part.at(), version=2))
    part.after(0)
    assert (part.sent, part.one(page).indexed, part.states()) == (["index: 1 a"], 1, [])
    part.after(6 * MINUTE)
    assert (part.sent, part.one(page).indexed) == (["index: 1 a", "index: 1 b"], 2)


# ---- 21: throttle ---------------------------------------------------------------------------------------------------------------
def test_a_customer_gets_one_mail_an_hour_with_all_the_news(part: Part) -> None:
    part.add(part.page.Customer(id=1, email="ada"))
    _tell(part, "one")
    part.after(0)
    for line in ("two", "three"):
        part.after(10 * MINUTE)
        _tell(part, line)
    part.after(39 * MINUTE)
    assert part.sent == ["ada: one\n"]
    part.after(2 * MINUTE)
    assert part.sent == ["ada: one\n", "ada: two\nthree\n"]


def test_news_that_comes_while_a_mail_is_in_the_air_stays_for_the_next(on_each: Part) -> None:
    part = on_each
    part.add(part.page.Customer(id=1, email="ada"))
    _tell(part, "one")
    part.page.sent = Interrupted(lambda: _tell(part, "two"))
    part.after(0)
    assert (part.sent, part.one(part.page.Customer).news, part.states()) == (["ada: one\n"], "two\n", [])
    part.after(HOUR + MINUTE)
    assert (part.sent[1:], part.one(part.page.Customer).news) == (["ada: two\n"], "")


def _tell(part: Part, line: str) -> None:
    with part.session() as session, session.begin():
        part.page.tell(session, 1, line)


# ---- 22: sleep between steps -----------------------------------------------------------------------------------------------------
def test_a_member_sleeps_two_days_and_then_five(part: Part) -> None:
    part.add(part.page.Member(id=1, email="ada", wakes_at=part.at(-1)))
    part.after(0)
    told = [len(part.sent)]
    for _ in range(8):
        part.after(DAY)
        told.append(len(part.sent))
    assert told == [1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert part.one(part.page.Member).step == "asked"


def test_whoever_sleeps_is_woken_by_an_update(part: Part) -> None:
    part.add(part.page.Member(id=1, email="ada", wakes_at=part.at(-1)))
    part.after(0)
    part.change(part.page.Member, wakes_at=part.at(-1))
    part.after(0)
    assert part.one(part.page.Member).step == "advised"


# ---- 23: a timeout for an answer --------------------------------------------------------------------------------------------------
def test_a_contract_that_nobody_signs_lapses_after_two_days(part: Part) -> None:
    part.add(part.page.Contract(id=1, email="ada"))
    part.after(0)
    part.after(DAY)
    assert part.one(part.page.Contract).status == "open"
    part.after(DAY + MINUTE)
    assert (part.one(part.page.Contract).status, _signed(part), len(part.sent)) == ("lapsed", False, 1)


def test_a_signature_before_the_call_has_returned_is_kept(on_each: Part) -> None:
    part = on_each
    part.add(part.page.Contract(id=1, email="ada"))
    part.page.sent = Interrupted(lambda: _signed(part))
    part.after(0)
    contract = part.one(part.page.Contract)
    assert (contract.status, contract.sent_at is not None, part.states()) == ("signed", True, [])
    part.after(3 * DAY)
    assert part.one(part.page.Contract).status == "signed"


def _signed(part: Part) -> bool:
    with part.session() as session, session.begin():
        found: bool = part.page.signed(session, 1)
        return found


# ---- 24: snooze -------------------------------------------------------------------------------------------------------------------
def test_an_alarm_that_is_snoozed_rings_at_its_new_time(part: Part) -> None:
    part.add(part.page.Alarm(id=1, owner="ada", rings_at=part.at(HOUR)))
    part.after(59 * MINUTE)
    _snooze(part, 10 * MINUTE)
    part.after(5 * MINUTE)
    assert part.sent == []
    part.after(6 * MINUTE)
    alarm = part.one(part.page.Alarm)
    assert (part.sent, alarm.rang, alarm.rings_at) == (["ada: ring"], 1, None)
    _snooze(part, 10 * MINUTE)
    part.after(11 * MINUTE)
    assert part.one(part.page.Alarm).rang == 2


def test_an_alarm_that_is_snoozed_while_it_rings_rings_again(on_each: Part) -> None:
    part = on_each
    part.add(part.page.Alarm(id=1, owner="ada", rings_at=part.at(-1)))
    part.page.sent = Interrupted(lambda: _snooze(part, 10 * MINUTE))
    part.after(0)
    assert (part.one(part.page.Alarm).rang, part.states()) == (1, [])
    part.after(11 * MINUTE)
    assert (part.one(part.page.Alarm).rang, part.states()) == (2, [])


def _snooze(part: Part, seconds: float) -> None:
    with part.session() as session, session.begin():
        part.page.snooze(session, 1, part.at(seconds))


# ---- what is true of all ------------------------------------------------------------------------------------------------------------
def test_the_indexes_of_the_page_serve_each_look_and_check_wants_no_more(part: Part) -> None:
    part.there()
    database, *_ = connect.open_store(part.app.stores[0].settings())
    questions = [ConditionQuery(spec, database) for spec in part.app.reactions.values() if spec.due is not None]
    try:
        found = check_database(database, questions, part.app.stores[0].metadatas)
        plans = [
            plan
            for question in questions
            for one in (
                question.selects.select_cursors_after(None, 100, crowded=False),
                question.selects.select_next_base_times(timedelta(hours=1)),
            )
            for plan in _plan(part, str(one.compile(database.engine, compile_kwargs={"literal_binds": True})))
        ]
    finally:
        database.close()
    assert [one.words for one in found if one.kind == "index"] == []
    assert len(plans) >= 2 * len(questions)
    assert [plan for plan in plans if not plan.startswith("SEARCH")] == []


def _plan(part: Part, statement: str) -> list[str]:
    with part.engine.connect() as connection:
        return [str(row[-1]) for row in connection.execute(text(f"EXPLAIN QUERY PLAN {statement}".replace(":", "\\:")))]


class Interrupted(list[str]):
    """What was sent; while the first is in the air, somebody else does this."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act

    def append(self, line: str) -> None:
        super().append(line)
        act, self._act = self._act, None
        if act is not None:
            other = threading.Thread(target=act)  # what a call writes itself is refused
            other.start()
            other.join()
