"""Schedules that cannot be meant are refused where they are declared, with the cure; right ones stay callable."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from groundstate import App, DeclarationError, ReactionContext, Retry, Store
from groundstate.app.declared import schedules_of
from tests.app.models import Base, Order

HOUR = timedelta(hours=1)


@pytest.fixture
def one() -> App:
    """An app with one store."""
    return App("scheduled", Store("sqlite:///never-opened.db", Base))


def nothing() -> None: ...


def of_a_record(order: Order) -> None: ...


async def waits(session: Session) -> None: ...


def yields() -> Any:
    yield


def test_a_schedule_is_known_by_its_name_and_its_handler_stays_callable(one: App) -> None:
    @one.every("0 7 * * mon", zone="Europe/Berlin", missed="all", max_missed=5, gap="skip", fold="both", retry=Retry(times=2))
    def weekly(session: Session, ctx: ReactionContext) -> None: ...

    @one.every(timedelta(seconds=90), name="often")
    def other(ctx: ReactionContext) -> None: ...

    assert callable(weekly)
    spec = one.schedules["weekly"]
    assert (spec.as_text, spec.missed, spec.max_missed, spec.retry.times) == ("every 0 7 * * MON in Europe/Berlin", "all", 5, 2)
    assert one.schedules["often"].as_text == "every 90 s"
    one.every(timedelta(days=5000, microseconds=1), name="odd")(nothing)
    assert one.schedules["odd"].as_text == "every 432000000.000001 s"
    one.check_declarations()


@pytest.mark.parametrize(
    ("cron", "options", "handler", "told"),
    [
        ("61 * * * *", {}, nothing, "schedule nothing: cron '61 .* field 1, minute"),
        ("0 0 30 2 *", {}, nothing, "never comes"),
        ("0 * * * *", {"zone": "Berlin"}, nothing, "schedule nothing: there is no time zone 'Berlin': did you mean Europe/Berlin"),
        ("0 * * * *", {"gap": "later"}, nothing, "choose 'shift' or 'skip'"),
        ("0 * * * *", {"fold": None}, nothing, "choose 'first' or 'second' or 'both'"),
        (timedelta(), {}, nothing, "every 0 s: a second is the shortest"),
        (-HOUR, {}, nothing, "a second is the shortest"),
        (timedelta(milliseconds=999), {}, nothing, "a second is the shortest"),
        (HOUR, {"zone": "Europe/Berlin"}, nothing, "zone= is for a cron expression"),
        (HOUR, {"fold": "both"}, nothing, "fold= is for a cron expression"),
        (3600, {}, nothing, "give its five fields as text"),
        (HOUR, {"missed": "some"}, nothing, "choose 'none' or 'latest' or 'all'"),
        (HOUR, {"max_missed": 0}, nothing, "at least 1 missed tick is carried out; for none choose missed='none'"),
        (HOUR, {"max_missed": True}, nothing, "max_missed=True"),
        (HOUR, {"retry": 3}, nothing, r"give a Retry\("),
        (HOUR, {"store": "main"}, nothing, "is none of the stores"),
        (HOUR, {"store": Store("sqlite:///other.db", Base)}, nothing, "is none of the stores"),
        (HOUR, {"name": " "}, nothing, "a name has 1 to 200 printable characters"),
        (HOUR, {}, of_a_record, "nobody supplies its parameter 'order'.* A tick has no record"),
        (HOUR, {}, waits, "is async: it runs inside a transaction"),
        (HOUR, {}, yields, "is a generator function"),
        (HOUR, {}, lambda: None, "has no name of its own"),
        (HOUR, {}, "report", "no name of its own"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_cure(one: App, cron: Any, options: Any, handler: Callable[..., Any], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        one.every(cron, **options)(handler)
    assert one.schedules == {}


def test_a_name_is_a_reactions_or_a_schedules(one: App) -> None:
    one.every(HOUR)(nothing)
    with pytest.raises(DeclarationError, match="has a schedule 'nothing' already"):
        one.every("@daily")(nothing)
    with pytest.raises(DeclarationError, match="has a schedule 'nothing' already"):
        one.on(Order, Order.status == "placed", name="nothing")(of_a_record)
    one.on(Order, Order.status == "placed")(of_a_record)
    with pytest.raises(DeclarationError, match="has a reaction 'of_a_record' already"):
        one.every(HOUR, name="of_a_record")(nothing)


def test_an_app_with_several_stores_is_told_to_say_in_which_a_tick_writes(app: App) -> None:
    with pytest.raises(DeclarationError, match="has 2 stores: say by store= to which one the handler writes"):
        app.every(HOUR)(nothing)
    app.every(HOUR, store=app.stores[1])(nothing)
    assert [spec.name for spec in schedules_of(app, app.stores[1])] == ["nothing"]
    assert schedules_of(app, app.stores[0]) == []
