"""The judge must find every way in which the books can disagree, and must not accuse what is in order."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from groundstate.demo import books, database
from groundstate.demo.books import Attempt, Books, OrderRow, compare_books
from groundstate.demo.ledger import Entry, Ledger
from groundstate.store import tables

PACKED = OrderRow(1, "a@x", 500, "packed", "ch_1", mailed=True)
CANCELLED = OrderRow(2, "b@x", 700, "cancelled", None, mailed=False)


def customers(*orders: OrderRow) -> list[Entry]:
    asked: list[Entry] = [{"email": order.email, "total": order.total} for order in orders]
    return asked + [{"email": order.email, "total": order.total, "order": order.id} for order in orders]


def charge(order: OrderRow, number: int = 1, outcome: str = "charged") -> Entry:
    return {"id": f"ch_{number}", "key": f"k{order.id}", "order": order.id, "amount": order.total, "outcome": outcome}


def mail(order: OrderRow) -> Entry:
    return {"order": order.id, "id": f"<k{order.id}>", "to": [order.email]}


def held(reaction: str, record: int) -> Attempt:
    return Attempt(reaction, str(record), "held", True, "in doubt, and nobody can be asked", None)


GOOD = Books(
    customers=customers(PACKED, CANCELLED),
    charges=[charge(PACKED), charge(CANCELLED, 2, "declined")],
    mails=[mail(PACKED)],
    orders=[PACKED, CANCELLED],
)


def one(order: OrderRow, **given: object) -> Books:
    """The books of one order, all else as it should be for a packed one."""
    good = Books(customers=customers(PACKED), charges=[charge(PACKED)], mails=[mail(PACKED)], orders=[order])
    return replace(good, **given)  # type: ignore[arg-type]  # whatever the test changes


def faults(of: Books) -> list[str]:
    return [f"{fault.order} {fault.what}" for fault in compare_books(of).faults]


def test_books_in_order_balance() -> None:
    found = compare_books(GOOD)
    assert (found.faults, found.held) == ((), ())
    assert found.counts["accepted by the shop"] == found.counts["in the database"] == 2
    assert (found.counts["charged by the gateway"], found.counts["declined by the gateway"], found.counts["mails that arrived"]) == (
        1,
        1,
        1,
    )


def test_empty_books_balance() -> None:
    assert faults(Books()) == []


@pytest.mark.parametrize("arrived", [True, False])
def test_a_held_mail_is_listed_with_its_reason_and_what_the_mail_server_knows(arrived: bool) -> None:
    order = replace(PACKED, mailed=False)
    found = compare_books(one(order, mails=[mail(order)] if arrived else [], attempts=[held("mailed", 1)]))
    assert found.faults == ()
    (item,) = found.held
    assert (item.order, item.why) == (1, "in doubt, and nobody can be asked")
    assert item.evidence == ("the mail arrived" if arrived else "no mail arrived")


@pytest.mark.parametrize("charged", [True, False])
def test_a_held_charge_is_listed_and_may_have_been_made_once(charged: bool) -> None:
    order = OrderRow(1, "a@x", 500, "placed", None, mailed=False)
    found = compare_books(one(order, charges=[charge(order)] if charged else [], mails=[], attempts=[held("paid", 1)]))
    assert found.faults == ()
    assert found.held[0].evidence == ("charged as ch_1" if charged else "not charged")


def test_an_order_that_the_shop_did_not_accept_is_no_fault_and_is_counted() -> None:
    refused: list[Entry] = [{"email": "c@x", "total": 1}, {"email": "c@x", "refused": "the shop answered 500"}]
    found = compare_books(replace(GOOD, customers=[*GOOD.customers, *refused]))
    assert (found.faults, found.counts["not accepted"]) == ((), 1)


def test_an_order_whose_answer_was_lost_may_be_in_the_database() -> None:
    assert faults(replace(GOOD, customers=[entry for entry in GOOD.customers if entry.get("order") != 1])) == []


def test_a_lost_order_is_found() -> None:
    assert "2 was accepted, and is not in the database: lost" in faults(replace(GOOD, orders=[PACKED], charges=[charge(PACKED)]))


def test_an_order_that_nobody_placed_is_found() -> None:
    assert faults(replace(GOOD, customers=customers(PACKED))) == ["2 is in the database, and nobody ordered it"]


def test_an_order_that_was_inserted_twice_is_found() -> None:
    again = replace(CANCELLED, id=3)
    found = faults(replace(GOOD, orders=[*GOOD.orders, again], charges=[*GOOD.charges, charge(again, 3, "declined")]))
    assert found == ["3 is in the database a second time"]


def test_an_order_that_was_changed_is_found() -> None:
    cheaper = replace(PACKED, total=5)
    assert "1 is not what the customer ordered" in faults(one(cheaper, charges=[charge(cheaper)]))


def test_a_double_charge_is_found_and_no_hold_excuses_it() -> None:
    assert faults(one(PACKED, charges=[charge(PACKED), charge(PACKED, 2)])) == ["1 was charged 2 times: ch_1, ch_2"]
    placed = replace(PACKED, status="placed", receipt=None, mailed=False)
    twice = one(placed, charges=[charge(placed), charge(placed, 2)], mails=[], attempts=[held("paid", 1)])
    assert faults(twice) == ["1 was charged 2 times: ch_1, ch_2"]


def test_a_charge_that_the_order_does_not_know_is_found() -> None:
    declined = replace(CANCELLED, id=1, email="a@x", total=500)
    both = [charge(declined), charge(declined, 2, "declined")]
    assert faults(one(declined, charges=both, mails=[])) == ["1 was charged as ch_1, and does not know it"]


def test_an_order_that_was_paid_and_never_charged_is_found() -> None:
    assert faults(one(PACKED, charges=[])) == ["1 has the receipt ch_1, and was never charged"]


def test_somebody_elses_receipt_is_found() -> None:
    assert faults(one(PACKED, charges=[charge(PACKED, 9)])) == ["1 has the receipt ch_1, and was charged as ch_9"]


def test_a_packed_order_without_a_receipt_is_found() -> None:
    unpaid = replace(PACKED, receipt=None, mailed=False)
    assert faults(one(unpaid, charges=[], mails=[])) == ["1 is 'packed' without a receipt"]


def test_another_amount_is_found() -> None:
    assert faults(one(PACKED, charges=[{**charge(PACKED), "amount": 1}])) == ["1 was charged another amount than its total"]


def test_an_order_cancelled_without_the_gateways_word_is_found() -> None:
    cancelled = replace(CANCELLED, id=1, email="a@x", total=500)
    assert faults(one(cancelled, charges=[], mails=[])) == ["1 is 'cancelled', and the gateway never declined it"]


@pytest.mark.parametrize("what", ["charges", "mails"])
def test_a_charge_or_a_mail_for_no_order_is_found(what: str) -> None:
    nobody = replace(PACKED, id=99)
    more = (
        replace(GOOD, charges=[*GOOD.charges, charge(nobody, 9)]) if what == "charges" else replace(GOOD, mails=[*GOOD.mails, mail(nobody)])
    )
    (found,) = faults(more)
    assert found.startswith("99 ")
    assert found.endswith("is not in the database")


def test_a_mail_sent_twice_is_found_and_no_hold_excuses_it() -> None:
    assert faults(one(PACKED, mails=[mail(PACKED), mail(PACKED)])) == ["1 had 2 mails"]
    unknown = replace(PACKED, mailed=False)
    assert faults(one(unknown, mails=[mail(PACKED)] * 2, attempts=[held("mailed", 1)])) == ["1 had 2 mails"]


def test_a_mail_that_is_said_to_have_gone_out_and_did_not_is_found() -> None:
    assert faults(one(PACKED, mails=[])) == ["1 says that its mail has gone out, and none arrived"]


def test_a_mail_that_went_out_and_is_not_known_is_found() -> None:
    assert faults(one(replace(PACKED, mailed=False))) == ["1 had its mail, and does not know it"]


def test_a_mail_that_was_forgotten_is_found() -> None:
    assert faults(one(replace(PACKED, mailed=False), mails=[])) == ["1 never had its mail, and is listed nowhere"]


def test_a_mail_without_a_receipt_is_found() -> None:
    found = faults(replace(GOOD, mails=[*GOOD.mails, mail(CANCELLED)]))
    assert found == ["2 had a mail for a receipt that it does not have"]


def test_a_mail_to_somebody_else_is_found() -> None:
    assert faults(one(PACKED, mails=[{**mail(PACKED), "to": ["z@x"]}])) == ["1 had its mail sent to somebody else"]


@pytest.mark.parametrize("status", ["placed", "declined"])
def test_an_order_that_stopped_half_way_without_a_word_is_found(status: str) -> None:
    stopped = OrderRow(1, "a@x", 500, status, None, mailed=False)
    declined = [charge(stopped, 1, "declined")] if status == "declined" else []
    assert faults(one(stopped, charges=declined, mails=[])) == [f"1 stopped at '{status}', and is listed nowhere"]


def test_a_held_mail_does_not_excuse_an_order_that_stopped_elsewhere() -> None:
    stopped = replace(PACKED, status="paid", mailed=False)
    assert faults(one(stopped, mails=[], attempts=[held("mailed", 1)])) == ["1 stopped at 'paid', and is listed nowhere"]


@pytest.mark.parametrize("state", ["begun", "doubt", "failed"])
def test_what_was_not_finished_in_time_is_found(state: str) -> None:
    attempt = Attempt("mailed", "1", state, False, None, "timed out")
    assert faults(one(PACKED, attempts=[attempt])) == [f"1 was not finished: mailed is {state} (timed out)"]


def test_an_attempt_for_no_order_is_found() -> None:
    assert faults(replace(GOOD, attempts=[held("paid", 77)])) == ["None paid 77 is held, and there is no such order"]


def test_the_books_are_read_from_the_database_and_the_ledgers(tmp_path: Path, database_url: str) -> None:
    engine = database.create_shop_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("create table orders (id integer, email text, total integer, status text, receipt text, mailed_at text)"))
        connection.execute(text("insert into orders values (2, 'b@x', 7, 'placed', null, null), (1, 'a@x', 5, 'packed', 'ch_1', 'now')"))
        tables.metadata.create_all(connection)
        moment = "'2026-01-01 00:00:00.000000'"
        connection.execute(
            text(
                "insert into groundstate_attempt (app, reaction, record, occurrence, state, worker, call, call_no, unsure, since, first_at,"
                f" deadline, failures, why, together) values ('shop', 'paid', '2', '', 'held', 1, 1, 1, true, {moment}, {moment},"
                f" {moment}, 1, 'because', 0)"
            )
        )
    with closing(Ledger(tmp_path / books.MAILS)) as mails:
        mails.write({"order": 1})
    found = books.read_books(tmp_path, engine)
    engine.dispose()
    assert found.orders == [OrderRow(1, "a@x", 5, "packed", "ch_1", mailed=True), OrderRow(2, "b@x", 7, "placed", None, mailed=False)]
    assert found.attempts == [Attempt("paid", "2", "held", True, "because", None)]
    assert (found.customers, found.charges, found.mails) == ([], [], [{"order": 1}])
