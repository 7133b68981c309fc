"""Keys by which no record is found: their reactions, or their rows, wait and are told of, and the others are carried out."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from groundstate import ExternalService, InDoubt, InOrder, UtcDateTime
from groundstate.cli.check import _check_store as check
from groundstate.engine.operate import actions
from groundstate.values.errors import NotFoundError
from tests.engine.kit import Base, until
from tests.engine.sql.test_key_columns import REFUSED_BY_POSTGRES, ULID, Guid, declared, insert, keyed
from tests.others_go_on.conftest import OTHERS, Beside, a_world


@pytest.mark.filterwarnings("ignore:Type object:sqlalchemy.exc.SADeprecationWarning")  # of MONEY, which is SQLAlchemy's to mend
def test_a_key_that_does_not_come_back_from_its_text_bars_its_own_reactions_alone(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ULID if database_url.startswith("sqlite") else REFUSED_BY_POSTGRES
    base, rows = keyed(kinds)
    with a_world(database_url, caplog, Base, base) as beside:
        declared(beside.app, rows)
        beside.handled(lambda _order: None)
        beside.there()
        insert(beside, rows, kinds)
        beside.placed()
        life = beside.worker()
        beside.until_done()
        barred = {f"{name}_{what}" for name in kinds for what in ("paid", "packed")}
        until(lambda: set(life.worker.reasons_of_waiting_reactions) == barred, lambda: life.worker.reasons_of_waiting_reactions)
        said = "are not found by the text of their key"
        until(lambda: sorted(line.split()[1] for line in beside.told("reaction_unfit") if said in line) == sorted(barred))
        report = beside.pending()
        assert {one.reaction for one in report.to_do if one.rows} == {f"{name}_paid" for name in kinds}
        assert {name for name, words in report.lacks.items() if said in words} == barred
        assert {name for name in barred if said in (beside.status(name).lacks or "")} == barred
        for name in kinds:
            with pytest.raises(NotFoundError, match=said):
                beside.why_of(name, "0.1")
        assert {one.subject for one in check(beside.app, beside.app.stores[0]) if said in one.words} == set(kinds)


def packing(beside: Beside, kind: Any, outcome: str, *, by_a_call: bool) -> list[object]:
    """Declares the reaction 'packed', which gives new records this status. Returns the keys for which its call was made."""
    called: list[object] = []

    @ExternalService("desk", limit=50).call(in_doubt=InDoubt.hold())
    async def ask(record: Any) -> str:
        called.append(record.id)
        return outcome

    def concluded(record: Any, outcome: str) -> None:
        record.status = outcome

    def plainly(record: Any) -> None:
        record.status = outcome

    if by_a_call:
        beside.app.on(kind, kind.status == "new", name="packed", call=ask)(concluded)
    else:
        beside.app.on(kind, kind.status == "new", name="packed")(plainly)
    return called


@pytest.mark.parametrize("by_a_call", [False, True], ids=["without_a_call", "by_a_call"])
@pytest.mark.parametrize("there", [True, False], ids=["at_the_start", "later"])
def test_a_key_of_which_its_type_makes_no_value_is_held_by_itself_and_a_person_forgets_it(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, there: bool, by_a_call: bool
) -> None:
    base, rows = keyed({"guid": (Guid, None)})
    kind = rows["guid"]
    with a_world(sqlite_url, caplog, Base, base) as beside:
        packing(beside, kind, "receipt", by_a_call=by_a_call)
        beside.handled(lambda _order: None)
        beside.there()
        if not there:
            beside.worker().quiet()
        with beside.engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO guid (id, status) VALUES ('  zzz', 'new'), ('zzz', 'new')")
            connection.execute(sa.insert(kind), [{"id": uuid.UUID(int=number), "status": "new"} for number in range(OTHERS)])
        beside.placed()
        if there:
            beside.worker()
        beside.until_done()
        said = "its key cannot be read: ValueError: badly formed hexadecimal UUID string"
        until(lambda: beside.states() == ["held", "held"], beside.attempts)
        until(lambda: beside.status("packed").rows == 0)
        assert [(one.record, one.error) for one in beside.pending().held] == [("  zzz", said), ("zzz", said)]
        assert beside.status("packed").attempts["held"].count == 2
        assert beside.why_of("guid", "zzz").answers[0].attempts[0].error == said
        assert beside.told("record_unreadable") == [f"WARNING packed on guid {record}: {said}" for record in ("  zzz", "zzz")]
        beside.run("DELETE FROM guid WHERE id = 'zzz'")
        with beside.person() as person:
            assert actions.forget(person, "packed", "zzz").became == "deleted"
        until(lambda: beside.states() == ["held"], beside.attempts)


def test_a_key_of_which_its_type_makes_no_value_keeps_its_own_line_waiting_and_no_other_reaction(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    base, rows = keyed({"guid": (Guid, None)})
    kind = rows["guid"]
    with a_world(sqlite_url, caplog, Base, base) as beside:

        @beside.app.on(kind, kind.status == "new", name="packed", in_order=InOrder(kind.status, kind.id))
        def _(record: Any) -> None:
            record.status = "packed"

        beside.handled(lambda _order: None)
        beside.there()
        beside.run("INSERT INTO guid (id, status) VALUES ('zzz', 'new')")
        beside.placed()
        beside.worker()
        beside.until_done()
        until(lambda: beside.told("condition_failed"))
        assert beside.told("turn_failed") == []
        assert beside.pending().to_do[0].oldest == ("zzz",)
        assert beside.status("packed").rows == 1


TIMES = [datetime(2027, 1, 1) + timedelta(hours=number) for number in range(OTHERS)]  # noqa: DTZ001  # as a DateTime has them
OTHER_FORMS: dict[str, tuple[Any, str, list[Any]]] = {
    "a UUID with dashes": (sa.Uuid, "'5f0c7a52-6d2f-4c0b-9a37-8f2a1b3c4d5e'", [uuid.UUID(int=number) for number in range(OTHERS)]),
    "a UUID in capitals": (sa.Uuid, "'5F0C7A526D2F4C0B9A378F2A1B3C4D5E'", [uuid.UUID(int=number) for number in range(OTHERS)]),
    "a time without microseconds": (sa.DateTime, "'2026-01-01 00:00:00'", TIMES),
    "a time with a T": (sa.DateTime, "'2026-01-01T00:00:00.000000'", TIMES),
    "an UtcDateTime with a Z": (UtcDateTime, "'2026-01-01 00:00:00.000000Z'", [at.replace(tzinfo=UTC) for at in TIMES]),
    "bytes in a text": (lambda: sa.String(40), "x'616263'", [f"key {number}" for number in range(OTHERS)]),
}


@pytest.mark.parametrize("by_a_call", [False, True], ids=["without_a_call", "by_a_call"])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_key_that_stands_in_another_form_is_held_before_any_call_and_the_others_are_carried_out(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, form: str, by_a_call: bool
) -> None:
    make, written, others = OTHER_FORMS[form]
    base, rows = keyed({"odd": (make, None)})
    kind = rows["odd"]
    with a_world(sqlite_url, caplog, Base, base) as beside:
        called = packing(beside, kind, "done", by_a_call=by_a_call)
        beside.there()
        beside.run(f"INSERT INTO odd (id, status) VALUES ({written}, 'new')")
        with beside.engine.begin() as connection:
            connection.execute(sa.insert(kind), [{"id": key, "status": "new"} for key in others])
        beside.worker().quiet()
        (one,) = beside.attempts()
        assert one.state == "held"
        assert "its key cannot be read" in str(one.error)
        assert len(called) == (OTHERS if by_a_call else 0)
        with beside.engine.connect() as connection:
            done = connection.exec_driver_sql("SELECT count(*) FROM odd WHERE status = 'done'").scalar_one()
        assert done == OTHERS
        assert [one.record for one in beside.pending().held] == [one.record]
        assert "its key cannot be read" in str(beside.why_of("odd", one.record).answers[0].attempts[0].error)
        assert [found.subject for found in check(beside.app, beside.app.stores[0]) if found.kind == "stored"] == ["odd.id"]
        beside.run(f"DELETE FROM odd WHERE id = {written}")
        with beside.person() as person:
            assert actions.forget(person, "packed", one.record).became == "deleted"


def test_a_key_that_is_found_in_another_form_by_its_collation_is_carried_out(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    base, rows = keyed({"odd": (sa.Uuid, None)})
    kind = rows["odd"]
    with a_world(sqlite_url, caplog, base) as beside:

        @beside.app.on(kind, kind.status == "new", name="packed")
        def packed(record: Any) -> None:
            record.status = "done"

        with beside.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE odd (id CHAR(32) COLLATE NOCASE PRIMARY KEY, status VARCHAR(9))")
        beside.there()
        beside.run("INSERT INTO odd (id, status) VALUES ('5F0C7A526D2F4C0B9A378F2A1B3C4D5E', 'new')")
        beside.worker().quiet()
        assert beside.attempts() == []
        with beside.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT status FROM odd").scalar_one() == "done"
