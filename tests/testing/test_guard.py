"""What a handler may not do in its transaction fails the test, with the place where it stands; and what it may do does not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
from sqlalchemy import JSON, create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from groundstate import Absent, App, ExternalService, Failure, IdempotencyKey, InDoubt, ReactionContext, Retry, Store, Unknown
from groundstate.testing import Client, Crashed, Lab
from tests.sampling import a_few
from tests.testing.shops import NOWHERE, Base, Order, calling, never, plain

HERE = "test_guard.py"


def told(lab: Lab, name: str, do: Callable[[], object], *, invariant: str) -> str:
    def handler(order: Order) -> None:
        do()
        order.status = "packed"

    with pytest.raises(Crashed) as caught:
        lab.crash_everywhere(plain(f"guarded-{name}", handler), Order(id=1))
    assert caught.value.invariant == invariant
    assert str(caught.value.schedule) == "nothing"
    return str(caught.value)


def swallowed() -> None:
    try:
        time.sleep(1)
    except BaseException:  # noqa: BLE001  # what a careless handler does
        logging.getLogger("swallowed").debug("swallowed")


async def _later() -> None:
    await asyncio.sleep(0)


REACHING_OUT: dict[str, tuple[Callable[[], object], str]] = {
    "sleep": (lambda: time.sleep(0.01), "time.sleep"),
    "swallowed": (swallowed, "time.sleep"),
    "socket": (lambda: socket.create_connection(("127.0.0.1", 9)), "socket"),
    "datagram": (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)), "socket.socket.sendto"),
    "urllib": (lambda: urlopen("http://127.0.0.1:9/", timeout=1), "socket"),
    "httpx": (lambda: httpx.get("http://127.0.0.1:9/"), "socket"),
    "subprocess": (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "posixsubprocess.fork_exec"),
    "system": (lambda: os.system("true"), "posix.system"),
    "asyncio": (lambda: asyncio.run(_later()), "socket.socketpair"),
}


@pytest.mark.parametrize("kind", a_few(REACHING_OUT, 3))
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_reaches_outside_of_its_transaction_fails_with_the_place_where_it_does(kind: str) -> None:
    do, named = REACHING_OUT[kind]
    with Lab() as lab:
        words = told(lab, kind, do, invariant="NothingOutside")
    assert named in words
    assert HERE in words
    assert "do it in a call (`@service.call`)" in words
    gc.collect()  # an event loop that was cut off is told of here, and not in another test


def test_nothing_is_sent_by_what_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        with Lab() as lab:
            told(lab, "unsent", lambda: socket.create_connection(("127.0.0.1", port)), invariant="NothingOutside")
        with pytest.raises(TimeoutError):
            server.accept()


def test_sends_that_reaches_outside_fails_as_well() -> None:
    app = App("lab-sends", Store(NOWHERE, Base))

    @ExternalService("smtp").call(in_doubt=InDoubt.hold())
    async def send(text: str) -> str:
        return str(never(text))

    def letter(order: Order) -> str:
        time.sleep(0.01)
        return f"to {order.id}"

    @app.on(Order, Order.status == "placed", call=send, prepare=letter)
    def sent(order: Order, outcome: str) -> None:
        order.status = outcome

    with Lab() as lab:
        lab.fake(send, "sent")
        with pytest.raises(Crashed, match=r"time\.sleep") as caught:
            lab.crash_everywhere(app, Order(id=1))
    assert "in letter" in str(caught.value)


@pytest.mark.parametrize("where", ["call", "find"])
def test_a_call_or_a_find_that_writes_to_the_apps_own_database_fails(tmp_path: Path, where: str) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"
    app, engine = App(f"lab-writes-in-{where}", Store(url, Base)), create_engine(url)
    Base.metadata.create_all(engine)
    bank = ExternalService("bank", client=never)

    def writes() -> None:
        with engine.begin() as connection:
            connection.execute(insert(Order).values(id=2))

    @bank.call(in_doubt=InDoubt.lookup(settle_after=timedelta(seconds=1)), timeout=timedelta(seconds=5))
    def charge(order: Order, key: IdempotencyKey, client: Client) -> str:
        answer = str(client.request(key, order.id))
        if where == "call":
            writes()
        return answer

    @charge.lookup
    def _(order: Order, key: IdempotencyKey, client: Client) -> str | Absent | Unknown:
        writes()
        return Unknown()

    @app.on(Order, Order.status == "placed", call=charge)
    def paid(order: Order, outcome: str) -> None:
        order.status = outcome

    with Lab() as lab:
        lab.fake(charge, "r1", through=lambda client: client)
        with pytest.raises(Crashed) as caught:
            lab.crash_everywhere(app, Order(id=1), only="nothing" if where == "call" else "call1=answer-lost")
    assert caught.value.invariant == "NothingWritten"
    assert f"the {'lookup' if where == 'find' else where}" in str(caught.value)
    assert "call_writes" in str(caught.value)
    with Session(engine) as session:
        assert session.scalars(select(Order.id)).all() == []
    engine.dispose()


class Notes(DeclarativeBase):
    pass


class Note(Notes):
    __tablename__ = "guarded_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    more: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


def test_a_call_that_edits_its_snapshot_in_place_fails() -> None:
    app = App("lab-edits", Store("sqlite:///never-opened.db", Notes))

    @ExternalService("mail", client=never).call(in_doubt=InDoubt.hold())
    def send(note: Note, key: IdempotencyKey, client: Client) -> str:
        note.more["sent"] = True
        return str(client.request(key, note.id))

    @app.on(Note, Note.status == "new", call=send)
    def sent(note: Note, outcome: str) -> None:
        note.status = outcome

    with Lab() as lab:
        lab.fake(send, "sent", through=lambda client: client)
        with pytest.raises(Crashed, match="send edited more of its snapshot in place") as caught:
            lab.crash_everywhere(app, Note(id=1), only="nothing")
    assert caught.value.invariant == "NothingWritten"


def test_gave_up_that_reaches_outside_fails_as_well() -> None:
    made = calling("hold", retry=Retry(times=1))

    @made.reaction.gave_up
    def _(order: Order, failure: Failure) -> None:
        time.sleep(0.01)
        order.status = failure.error

    with Lab() as lab:
        lab.fake(made.call, "r1")
        with pytest.raises(Crashed, match=r"time\.sleep"):
            lab.crash_everywhere(made.app, Order(id=1), only="call1=refused")


def test_overtaken_that_reaches_outside_fails_as_well() -> None:
    made = calling("lookup")

    @made.reaction.overtaken
    def _(order: Order, outcome: str) -> None:
        time.sleep(0.01)
        order.receipt = outcome

    with Lab() as lab:
        lab.fake(made.call, "r1")

        @lab.meanwhile
        def cancel(session: Session) -> None:
            session.get_one(Order, 1).status = "cancelled"

        with pytest.raises(Crashed, match=r"time\.sleep"):
            lab.crash_everywhere(made.app, Order(id=1), budget=0)


def test_a_handler_may_ask_the_database_log_and_compute(postgres_url: str) -> None:
    def handler(order: Order, session: Session) -> None:
        assert session.scalars(select(func.count()).select_from(Order)).one() == 1
        logging.getLogger("tests.testing").warning("packing %d", order.id)
        order.status = "packed"

    for postgres in (None, postgres_url):
        with Lab(postgres=postgres, strict=True) as lab:
            assert lab.crash_everywhere(plain("asks", handler), Order(id=1), only="die@20").kills == 1


def time_by_name() -> float:
    return time.time()


def dice_by_name() -> float:
    return random.random()


CLOCKS: dict[str, Callable[[], Any]] = {
    "datetime.now": lambda: datetime.now(UTC),
    "date.today": date.today,
    "time.time": time_by_name,
    "random.random": dice_by_name,
    "random.randint": lambda: random.randint(1, 6),
    "uuid4": uuid.uuid4,
    "secrets": lambda: secrets.token_hex(4),
}


@pytest.mark.parametrize("kind", CLOCKS)
def test_where_it_is_asked_for_a_clock_or_dice_beside_the_moment_fail(kind: str) -> None:
    with Lab(strict=True) as lab:
        words = told(lab, kind.replace(".", "-"), CLOCKS[kind], invariant="ContextAlone")
    assert HERE in words
    assert ("ctx: ReactionContext" in words) or ("dice" in words)


def test_clocks_and_dice_are_nobodys_business_where_nobody_asks_for_it() -> None:
    def handler(order: Order) -> None:
        order.status = "packed" if time.time() > 0 and random.random() < 2 else "placed"

    with Lab() as lab:
        assert lab.crash_everywhere(plain("lax", handler), Order(id=1), budget=0).runs > 3


def test_the_moment_is_what_a_strict_handler_takes_and_its_own_seeded_dice() -> None:
    def handler(order: Order, ctx: ReactionContext) -> None:
        random.Random(order.id).random()
        order.status, order.done_at = "packed", ctx.now

    with Lab(strict=True) as lab:
        assert lab.crash_everywhere(plain("moment", handler), Order(id=1), budget=0).runs > 3


def test_no_watch_stays_when_the_handler_has_returned() -> None:
    with Lab(strict=True) as lab:
        told(lab, "gone", lambda: time.sleep(0.01), invariant="NothingOutside")
    assert sys.getprofile() is None
    time.sleep(0)
