"""A due column that somebody moves while its call is in the air or in doubt: what the author said of its rounds is what happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from groundstate import Absent, ConflictError, ExternalService, IdempotencyKey, InDoubt, Unknown, UtcDateTime, after
from groundstate.engine.operate import actions
from groundstate.rules.attempt import State
from tests.engine.kit import CALL_LIMIT, QUICK, Gateway, Life, World, ms, until
from tests.engine.operate.test_actions import acting

HOUR = timedelta(hours=1)


class MailBase(DeclarativeBase):
    pass


class Mail(MailBase):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    send_at: Mapped[datetime] = mapped_column(UtcDateTime)
    sent: Mapped[str | None] = mapped_column(default=None)


@pytest.fixture
def mails(database_url: str) -> Any:
    made = World(database_url, MailBase)
    yield made
    made.close()


def mailing(world: World, policy: Any = None, **options: Any) -> Gateway:
    gateway = world.gateway()
    server = ExternalService("mail server")

    @server.call(in_doubt=policy or InDoubt.lookup(settle_after=ms(100)), timeout=CALL_LIMIT, retry=QUICK)
    async def send(mail: Mail, key: IdempotencyKey) -> str:
        return await gateway.act(mail.id, key)

    if policy is None:

        @send.lookup
        def _(mail: Mail, key: IdempotencyKey) -> str | Absent | Unknown:
            answer: str | Absent | Unknown = gateway.find(mail.id, key)
            return answer

    @world.app.on(Mail, Mail.sent.is_(None), call=send, **{"due": Mail.send_at} | options)
    def sent(mail: Mail, message: str) -> None:
        mail.sent = message

    return gateway


def a_mail(world: World) -> Any:
    return world.get(Mail, 1)


def moved(world: World) -> None:
    """Somebody presses 'send again': the due column is set to a minute ago."""
    with world.engine.begin() as connection:
        connection.execute(update(Mail).where(Mail.id == 1).values(send_at=datetime.now(UTC) - timedelta(minutes=1)))


def in_the_air(world: World, gateway: Gateway, step: str = "done_hang") -> Life:
    gateway.plan(1, step)
    world.add(Mail(id=1, send_at=datetime.now(UTC) - HOUR))
    life = world.worker()
    until(lambda: gateway.waiting == 1 or bool(set(world.states()) & {"held", "doubt"}))
    return life


@pytest.mark.parametrize(
    "due", [Mail.send_at, after(Mail.send_at, -HOUR), after(Mail.send_at, valid_for=24 * HOUR)], ids=["column", "after", "valid_for"]
)
def test_each_new_time_is_a_round_and_the_call_of_the_old_one_is_settled_by_a_person_first(mails: World, due: Any) -> None:
    gateway = mailing(mails, due=due, occurrence=[Mail.send_at])
    if getattr(due, "valid_for", None) is not None:
        _expires(mails)
    life = in_the_air(mails, gateway)
    moved(mails)
    gateway.gate.set()
    until(lambda: "held" in mails.states())
    life.sweep()
    life.quiet()
    assert (mails.attempt().outcome, gateway.called(1), a_mail(mails).sent) == ('["r1"]', 1, None)
    with acting(mails) as person:
        did = actions.forget(person, "sent", "1")
    assert did.became == "deleted"
    assert "holds for another round by now" in did.words
    life.sweep()
    until(lambda: a_mail(mails).sent == "r2")
    assert gateway.called(1) == 2


def test_a_doubt_is_not_forgotten_while_its_record_is_to_be_called_for_another_round(mails: World) -> None:
    gateway = mailing(mails, InDoubt.hold(), occurrence=[Mail.send_at])
    life = in_the_air(mails, gateway, "done_raise")
    until(lambda: mails.states() == ["held"])
    moved(mails)
    with acting(mails) as person:
        with pytest.raises(ConflictError, match="`settle` it first"):
            actions.forget(person, "sent", "1")
        life.sweep()
        life.quiet()
        assert (mails.states(), gateway.called(1)) == (["held"], 1)
        with pytest.raises(ConflictError, match="may still be on its way"):
            actions.settle_absent(person, "sent", "1")
        mails.forward(HOUR.total_seconds())
        assert actions.settle_absent(person, "sent", "1").became == "deleted"
    life.sweep()
    until(lambda: a_mail(mails).sent == "r2")


def _expires(world: World) -> None:
    reaction = world.app.reactions["sent"]

    def late(mail: Mail) -> None:
        mail.sent = "too late"

    reaction.expired = reaction.handler.__class__(late)


def test_with_one_round_for_ever_a_moved_time_changes_nothing_and_the_outcome_is_written(mails: World) -> None:
    gateway = mailing(mails, occurrence=())
    life = in_the_air(mails, gateway)
    moved(mails)
    gateway.gate.set()
    until(lambda: a_mail(mails).sent == "r1")
    life.sweep()
    life.quiet()
    assert (gateway.called(1), mails.attempts()) == (1, [])


def test_with_one_round_for_ever_a_doubt_is_settled_though_its_time_moved(mails: World) -> None:
    gateway = mailing(mails, occurrence=())
    life = in_the_air(mails, gateway)
    life.kill()
    moved(mails)
    other = mails.worker()
    until(lambda: a_mail(mails).sent == "r1")
    other.quiet()
    assert (gateway.called(1), len({key for _, key in gateway.calls})) == (1, 1)


@pytest.mark.parametrize("said", ["same", None])
def test_a_mail_in_doubt_whose_time_a_button_moves_is_not_sent_again_when_a_person_says_that_it_was_sent(mails: World, said: Any) -> None:
    gateway = mailing(mails, InDoubt.hold(), occurrence=[Mail.send_at], overtaken=said)
    life = in_the_air(mails, gateway, "done_raise")
    until(lambda: mails.states() == ["held"])
    moved(mails)
    life.sweep()
    life.quiet()
    with acting(mails) as person:
        did = actions.settle(person, "sent", "1", outcome='"by hand"')
    assert did.became == ("concluded" if said else "held")
    life.sweep()
    life.quiet()
    assert (gateway.called(1), a_mail(mails).sent) == (1, "by hand" if said else None)


def test_too_late_is_not_answered_while_the_call_of_another_round_is_held(mails: World) -> None:
    gateway = mailing(mails, due=after(Mail.send_at, valid_for=HOUR / 2), occurrence=[Mail.send_at])
    _expires(mails)
    gateway.plan(1, "done_hang")
    mails.add(Mail(id=1, send_at=datetime.now(UTC) - timedelta(minutes=5)))
    life = mails.worker()
    until(lambda: gateway.waiting == 1)
    with mails.engine.begin() as connection:
        connection.execute(update(Mail).values(send_at=datetime.now(UTC) - 2 * HOUR))
    gateway.gate.set()
    until(lambda: "held" in mails.states())
    life.sweep()
    life.quiet()
    assert (mails.attempt().state, a_mail(mails).sent) == (State.HELD, None), "the mail that was sent was written down as too late"
    with acting(mails) as person:
        assert actions.forget(person, "sent", "1").became == "deleted"
    life.sweep()
    until(lambda: a_mail(mails).sent == "too late")
    assert gateway.called(1) == 1
