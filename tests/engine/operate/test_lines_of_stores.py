"""Each line of the log says which of several stores it is about, whichever thread says it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import App, ExternalService, InDoubt, NotDone, Retry, Store
from groundstate.cli.common import EscapingFormatter
from groundstate.values import log_store
from tests.engine.kit import ms


class Base(DeclarativeBase): ...


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]


@pytest.fixture
def sharded(sqlite_url: str, postgres_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[App]:
    caplog.set_level(logging.DEBUG, "groundstate")
    store = Store.shards({"north": sqlite_url, "south": postgres_url}, Base)
    app = App(f"lines-{uuid.uuid4().hex[:8]}", store)
    post = ExternalService("post")
    once = Retry(times=1, first=ms(1))

    @post.call(in_doubt=InDoubt.repeat(), retry=once)
    def send(parcel: Parcel) -> str:
        logging.getLogger("groundstate").info("called", extra={"event": "called"})  # as the engine says it of a call
        raise NotDone(parcel.id)

    @app.on(Parcel, Parcel.state == "sent", call=send, name="sent")
    def _(parcel: Parcel, outcome: str) -> None:
        parcel.state = outcome

    @app.on(Parcel, Parcel.state == "new", retry=once)
    def taken(parcel: Parcel) -> None:
        raise ValueError(parcel.id)

    app.init(tables=True, accept="call")
    for part in store.databases:
        engine = create_engine(part.settings().url)
        with Session(engine) as session, session.begin():
            session.add_all([Parcel(id=f"{part.name}-{state}", state=state) for state in ("new", "sent")])
        engine.dispose()
    yield app
    app.stop()


def test_what_a_worker_a_call_and_a_life_say_has_the_name_of_its_store(sharded: App, caplog: pytest.LogCaptureFixture) -> None:
    sharded.run_until_idle(ms(30_000))
    of_a_store = {"worker_began", "handler_failed", "called", "attempt_kept"}
    said = {(vars(one)["event"], vars(one).get("store")) for one in caplog.records if vars(one).get("event") in of_a_store}
    assert said == {(event, store) for event in of_a_store for store in ("north", "south")}


def test_the_words_of_each_line_have_the_store_where_there_are_several_whatever_formats_them(
    sharded: App, caplog: pytest.LogCaptureFixture
) -> None:
    sharded.run_until_idle(ms(30_000))
    of_stores = [one for one in caplog.records if vars(one).get("store") in ("north", "south")]
    assert {"handler_failed", "attempt_kept"} <= {vars(one)["event"] for one in of_stores}
    assert [one.getMessage() for one in of_stores if vars(one)["store"] not in one.getMessage()] == []
    (line,) = [one for one in of_stores if vars(one)["event"] == "handler_failed" and vars(one)["store"] == "north"]
    assert line.getMessage().startswith("north: taken on parcels north-new: ")


def test_a_line_is_given_the_store_once_and_in_words_with_values_too(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger(log_store.LOGGERS[0])

    def say() -> None:
        log_store.label_log_lines("a%d", of_several=True)
        log.warning("trouble: %s", "no way")
        log.warning("100% of it")
        log.warning("%s: well again", "a%d")

    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    assert [one.getMessage() for one in caplog.records] == ["a%d: trouble: no way", "a%d: 100% of it", "a%d: well again"]


def test_a_plain_line_begins_with_the_store_where_there_are_several() -> None:
    record = logging.makeLogRecord({"msg": "the database is in trouble", "levelname": "WARNING", "store": "north"})
    assert EscapingFormatter("%(levelname)s %(message)s", stores=True).format(record) == "WARNING north: the database is in trouble"
    assert EscapingFormatter("%(levelname)s %(message)s").format(record) == "WARNING the database is in trouble"


def test_a_thread_that_is_of_no_store_says_none() -> None:
    assert "store" not in vars(logging.getLogger(log_store.LOGGERS[0]).makeRecord("groundstate", 20, "", 1, "words", (), None))
