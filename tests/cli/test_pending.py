"""`pending`: all that is left to do, by SELECTs alone."""

from __future__ import annotations

import hashlib
import io
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import URL, Engine, create_engine, event, make_url, text

from groundstate.cli import pending_tables
from groundstate.engine.operate import living_workers
from groundstate.engine.operate.pending import build_pending_report
from groundstate.engine.rows import attempt_text
from groundstate.engine.sql import lock_waits
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.attempt import State
from tests.cli.conftest import Said, Shop
from tests.patience import HANG_S
from tests.postgres.roles import role

_READS = ("SELECT", "WITH", "PRAGMA", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK", "EXPLAIN")


@contextmanager
def statements() -> Iterator[list[str]]:
    """Every statement that any engine of this process sends meanwhile."""
    seen: list[str] = []

    def note_commit(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note_commit)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note_commit)


def fill(shop: Shop) -> None:
    """Some of everything."""
    shop.order("placed", 3)
    shop.order("paid", 2, receipt="r")
    shop.order("lost")
    shop.order("packed")
    shop.attempt("paid", "1", State.DOUBT)
    shop.attempt("paid", "2", State.FAILED, failures=2, next_at=datetime.now(UTC) + timedelta(hours=1), error="NotDone: refused")
    shop.attempt("mailed", "4", State.HELD, unsure=True, why="in doubt, and its policy is InDoubt.hold(): a person decides")


def test_rows_to_be_carried_out_are_counted_without_those_with_attempts(shop: Shop) -> None:
    fill(shop)
    to_do = {one["reaction"]: (one["rows"], one["oldest"]) for one in shop.report()["to_do"]}
    assert to_do["paid"] == (1, ["3"])
    assert to_do["packed"] == (2, ["4", "5"])  # a mail in doubt has a done column, and keeps nobody out
    assert to_do["mailed"] == (1, ["5"])


def test_it_ends_with_0_and_says_so_when_nothing_is_left(shop: Shop) -> None:
    said = shop.run("pending")
    assert said.code == 0
    assert "Nothing is left to do." in said.out
    assert "no worker lives, by its lock" in said.out


def test_it_ends_with_0_where_there_is_work(shop: Shop) -> None:
    fill(shop)
    said = shop.run("pending")
    assert said.code == 0
    for words in ("To be carried out", "Begun or in doubt: 1", "Failed: 1", "Held for a person: 1", "a person", "NotDone: refused"):
        assert words in said.out


def test_a_composite_key_is_counted_without_those_with_attempts(shop: Shop) -> None:
    for number in range(3):
        shop.sql("INSERT INTO items (order_id, number, status) VALUES (1, :number, 'new')", number=number)
    shop.attempt("seen", "[1,1]", State.FAILED, blocks="items", next_at=datetime.now(UTC))
    (seen,) = [one for one in shop.report()["to_do"] if one["reaction"] == "seen"]
    assert (seen["rows"], seen["oldest"]) == (2, ["[1,0]", "[1,2]"])


def test_what_was_begun_is_in_the_air_while_its_life_has_its_lock_and_in_doubt_after(shop: Shop) -> None:
    shop.order("placed")
    life = secrets.randbits(62)
    shop.attempt("paid", "1", State.BEGUN, worker=life)
    _, lives = shop.open()
    lives.take_lock(life)
    try:
        report = shop.report()
        (begun,) = report["in_doubt"]
        assert (begun["standing"], report["counts"]["in the air"], report["counts"]["in doubt"]) == ("in the air", 1, 0)
        assert report["in_flight"].startswith("1 call is in the air, in 1 living worker")
    finally:
        lives.release()
    report = shop.report()
    (begun,) = report["in_doubt"]
    assert (begun["standing"], report["counts"]["in the air"], report["counts"]["in doubt"]) == ("in doubt", 0, 1)
    assert report["in_flight"].startswith("Nothing of ours is in flight")
    assert report["last_end"].startswith("the last worker ended, and left 1 call in doubt, which the next worker"), "it has no row"


def test_how_a_doubt_will_be_settled_and_from_when(shop: Shop) -> None:
    shop.order("placed")
    made = shop.attempt("paid", "1", State.DOUBT)
    (doubt,) = shop.report()["in_doubt"]
    assert "by its lookup" in doubt["next"]
    assert doubt["settled_from"] == (made.deadline + timedelta(seconds=30)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_who_waits_for_whom_is_said(shop: Shop) -> None:
    shop.order("placed", note="please")
    shop.order("placed", note="please")
    shop.attempt("paid", "1", State.DOUBT)
    report = shop.report()
    (waits,) = report["waits"]
    assert waits == {"reaction": "noted", "record": "1", "waits_for": "paid", "standing": "in doubt", "round": None, "person": None}
    (noted,) = [one for one in report["to_do"] if one["reaction"] == "noted"]
    assert noted["oldest"] == ["2"]


def test_hazard_51_states_that_no_reaction_answers_are_listed_but_for_those_at_rest(shop: Shop) -> None:
    fill(shop)
    assert shop.report()["states"] is None
    found = [(one["table"], one["column"], one["value"], one["rows"]) for one in shop.report("--states")["states"]]
    assert found == [("orders", "status", "lost", 1)]
    assert "lost" in shop.run("pending", "--states").out


def test_hazard_51_states_are_found_by_an_index_as_well(shop: Shop) -> None:
    fill(shop)
    shop.sql("CREATE INDEX by_status ON orders (status)")
    assert [one["value"] for one in shop.report("--states")["states"]] == ["lost"]


def test_all_are_counted_and_as_many_listed_as_asked_for(shop: Shop) -> None:
    shop.order("placed", 5)
    for number in range(5):
        shop.attempt("paid", str(number + 1), State.HELD, why="for a reason")
    report = shop.report("--limit", "2")
    assert report["counts"]["held"] == 5
    assert len(report["held"]) == 2
    assert shop.run("pending", "--limit", "0").code == 2


def test_a_new_reaction_on_old_rows_is_said_not_to_start(bare: Shop) -> None:
    assert bare.run("init", "--tables").code == 0
    bare.sql("DELETE FROM groundstate_reaction WHERE name <> ''")
    bare.order("paid", 4)
    report = bare.report()
    assert [(one["name"], one["rows"]) for one in report["newcomers"]] == [("packed", 4)]
    assert {one["reaction"]: one["starts"] for one in report["to_do"]}["packed"] is False
    assert "groundstate init --accept packed" in bare.run("pending").out


def test_attempts_of_a_reaction_that_is_not_declared_are_said(shop: Shop) -> None:
    shop.attempt("charged", "1", State.HELD, why="for a reason")
    assert shop.report()["undeclared"] == {"charged": 1}
    assert "'charged', which this code does not declare" in shop.run("pending").out


def test_rows_that_an_undeclared_reaction_left_out_are_no_open_attempts(shop: Shop) -> None:
    shop.attempt("charged", "1", State.HELD, why="baseline")
    report = shop.report()
    assert (report["undeclared"], report["baseline"]) == ({}, 1)


def test_the_report_has_the_documented_shape(shop: Shop) -> None:
    fill(shop)
    said = shop.run("pending", "--json", "--states").json
    assert (said["groundstate"], said["command"], said["app"]) == (1, "pending", shop.name)
    assert set(said["stores"][0]["report"]) == {
        "now", "at", "standby", "to_do", "counts", "in_doubt", "failed", "held", "waits", "locked", "unseen", "lacks", "newcomers",
        "suspects", "waiting", "undeclared", "gone", "baseline", "others", "workers", "careful", "last_end", "in_flight", "lock",
        "schedules", "states", "left",
    }  # fmt: skip
    assert set(said["stores"][0]["report"]["held"][0]) == {
        "reaction", "record", "occurrence", "standing", "next", "next_at", "settled_from", "key_kept_until", "since", "tries", "error",
        "why", "worker", "has_outcome",
    }  # fmt: skip


def test_hazard_54_escapes_in_errors_do_not_reach_the_terminal(shop: Shop) -> None:
    shop.order("placed")
    shop.attempt("paid", "1", State.HELD, why="\x1b]0;owned\x07", error="\x1b[2Jgone")
    said = shop.run("pending")
    assert "\x1b" not in said.out
    assert "\\x1b[2Jgone" in said.out


# ---- reads only ----------------------------------------------------------------------------------------------------------------
def test_hazard_55_it_sends_nothing_but_selects(shop: Shop) -> None:
    fill(shop)
    with statements() as seen:
        assert shop.run("pending", "--states").code == 0
        assert shop.run("why", "orders", "1").code == 0
    assert len(seen) > 10
    assert [one for one in seen if not one.lstrip("( \n").upper().startswith(_READS)] == []


def test_hazard_55_a_sqlite_file_stays_as_it_is_byte_by_byte(sqlite_shop: Shop, tmp_path: Path) -> None:
    fill(sqlite_shop)
    sqlite_shop.sql("SELECT 1")
    sqlite_shop.engine.dispose()
    files = sorted(path for path in tmp_path.glob("test.db*") if not path.name.endswith("-shm"))
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.stat().st_size}
    assert sqlite_shop.run("pending", "--states").code == 0
    after = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.exists() and path.stat().st_size}
    assert after["test.db"] == before["test.db"]


def test_hazard_55_select_grants_alone_are_enough(postgres_shop: Shop) -> None:
    shop = postgres_shop
    fill(shop)
    role = f"reader_{secrets.token_hex(4)}"
    shop.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        reader = make_url(shop.url).set(username=role, password="x")
        shop.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        said = elsewhere(shop, reader, "pending", "--states", "--json")
        assert said.code == 0, said.err
        assert said.json["stores"][0]["report"]["counts"]["held"] == 1
        shop.sql(f"REVOKE SELECT ON groundstate_attempt FROM {role}")
        said = elsewhere(shop, reader, "pending")
        assert said.code == 4
        assert "permission denied" in said.err
        assert "needs SELECT" in said.err
    finally:
        shop.sql(f"DROP OWNED BY {role}")
        shop.sql(f"DROP ROLE {role}")


def elsewhere(shop: Shop, url: URL, *arguments: str) -> Said:
    """The same app with another URL, in a process of its own."""
    written = Path(f"{shop.module}.py").read_text()
    Path("elsewhere.py").write_text(written.replace(repr(shop.url), repr(url.render_as_string(hide_password=False))))
    command = [sys.executable, "-m", "groundstate.cli.main", *arguments, "--app", "elsewhere:app"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    return Said(ended.returncode, ended.stdout, ended.stderr)


def test_a_read_only_file_is_read(sqlite_shop: Shop) -> None:
    fill(sqlite_shop)
    path = make_url(sqlite_shop.url).database
    said = elsewhere(sqlite_shop, make_url(f"sqlite:///file:{path}?mode=ro&uri=true"), "pending", "--json")
    assert said.code == 0, said.err
    assert said.json["stores"][0]["report"]["counts"]["held"] == 1
    said = elsewhere(sqlite_shop, make_url(f"sqlite:///file:{path}?mode=ro&uri=true"), "run")
    assert said.code == 4
    assert "read-only" in said.err


# ---- somebody else's transactions ------------------------------------------------------------------------------------------------
def test_hazard_19_a_row_that_a_long_transaction_locks_is_listed_with_its_pid(postgres_shop: Shop) -> None:
    shop = postgres_shop
    shop.order("paid", 2)
    module = __import__(shop.module)
    database, _ = shop.open()
    questions = [ConditionQuery(spec, database) for spec in module.app.reactions.values()]
    other = create_engine(make_url(shop.url).set(drivername="postgresql+psycopg"))
    with other.begin() as theirs:
        pid = theirs.execute(text("SELECT pg_backend_pid()")).scalar_one()
        theirs.execute(text("SELECT id FROM orders WHERE id = 2 FOR UPDATE")).all()
        with database.reading() as connection:
            (found,) = [one for one in lock_waits.find_locked_records(connection, questions, timedelta()) if one.reaction == "packed"]
        assert (found.record, found.pid) == ("2", pid)
        assert found.since is not None
        assert (found.who, found.ours) == ("unnamed, idle in transaction", False)
        with database.reading() as connection:
            assert lock_waits.find_locked_records(connection, questions, timedelta(hours=1)) == []
        theirs.execute(text("SET application_name = 'groundstate'"))  # as that of a worker, whose handler it is then
        with database.reading() as connection:
            (found,) = [one for one in lock_waits.find_locked_records(connection, questions, timedelta()) if one.reaction == "packed"]
        waits = "whose handler has run since then, and waits for something that is not the database"
        assert (found.who, found.ours) == (f"a worker of groundstate, {waits}", True)
        with role(shop.url, options="") as login:
            shop.sql(f"GRANT SELECT ON orders, items TO {make_url(login).username}")
            unseeing = create_engine(make_url(login).set(drivername="postgresql+psycopg"))
            with unseeing.connect() as connection:
                (found,) = [one for one in lock_waits.find_locked_records(connection, questions, timedelta()) if one.reaction == "packed"]
            unseeing.dispose()
        assert "this role may not see: GRANT pg_read_all_stats shows it" in found.who
    other.dispose()


def test_a_locked_table_hides_its_own_reactions_alone_and_who_locks_it_is_named(
    postgres_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "SEEN_WITHIN", timedelta(milliseconds=50))
    shop = postgres_shop
    shop.order("paid", 2)
    other = create_engine(make_url(shop.url).set(drivername="postgresql+psycopg"), connect_args={"application_name": "migration"})
    with other.begin() as theirs:
        pid = theirs.execute(text("SELECT pg_backend_pid()")).scalar_one()
        theirs.execute(text("LOCK TABLE items IN ACCESS EXCLUSIVE MODE"))
        report = shop.report()
        hidden = set(report["unseen"])
        assert hidden, "no reaction of the shop asks for items"
        assert all(f"pid {pid} (migration, idle in transaction) has locked the table items" in words for words in report["unseen"].values())
        assert {one["reaction"] for one in report["to_do"]}.isdisjoint(hidden)
        assert any(one["rows"] for one in report["to_do"]), "the others are seen"
        assert "cannot be seen" in shop.run("pending").out
        status = shop.run("status", "--json").json["stores"][0]["status"]
        assert {one["name"] for one in status["reactions"] if one["unseen"]} == hidden
        assert any(one["rows"] for one in status["reactions"])
        theirs.execute(text("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"))
        why = shop.run("why", "orders", "2", "--json").json["why"]
        assert all(f"pid {pid}" in one["next"] for one in why["answers"])
    other.dispose()


def test_a_row_that_another_transaction_locks_is_not_told_as_carried_out_now(postgres_shop: Shop) -> None:
    shop = postgres_shop
    shop.order("paid", 2)
    _, lives = shop.open()
    lives.take_lock(77)
    shop.sql("INSERT INTO groundstate_worker (id, app, host, pid, began_at, begins) VALUES (77, :app, 'h', 1, now(), 0)", app=shop.name)
    other = create_engine(make_url(shop.url).set(drivername="postgresql+psycopg"), connect_args={"application_name": "console"})
    with other.begin() as theirs:
        before = {one["reaction"]: one["next"] for one in shop.run("why", "orders", "2", "--json").json["why"]["answers"]}
        pid = theirs.execute(text("SELECT pg_backend_pid()")).scalar_one()
        theirs.execute(text("SELECT id FROM orders WHERE id = 2 FOR UPDATE")).all()
        after = {one["reaction"]: one["next"] for one in shop.run("why", "orders", "2", "--json").json["why"]["answers"]}
    other.dispose()
    lives.release()
    assert before["packed"] == "carried out now"
    assert f"waits until pid {pid} (console, idle in transaction) unlocks its row" in after["packed"]


def test_a_writer_of_the_sqlite_file_does_not_stop_it(sqlite_shop: Shop) -> None:
    sqlite_shop.order("placed")
    with sqlite_shop.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("UPDATE orders SET note = 'mine'")
        assert sqlite_shop.report()["to_do"][0]["rows"] == 1
        connection.exec_driver_sql("ROLLBACK")


# ---- lives ---------------------------------------------------------------------------------------------------------------------
def test_two_unclean_ends_are_careful_mode(shop: Shop) -> None:
    for life in (11, 12):
        shop.sql(
            "INSERT INTO groundstate_worker (id, app, host, pid, began_at, ended_at, begins) VALUES (:life, :app, 'h', 1, :now, :now, 0)",
            life=life, app=shop.name,
            now=datetime.now(UTC).replace(tzinfo=None if shop.url.startswith("sqlite") else UTC).isoformat(" ", "microseconds"),
        )  # fmt: skip
    report = shop.report()
    assert report["careful"] is True
    assert "2 workers ended uncleanly" in report["last_end"]
    assert "Careful mode" in shop.run("pending").out


def test_a_lock_that_cannot_be_seen_says_neither_alive_nor_dead() -> None:
    class Unseen:
        def alive_by_worker(self, _lives: list[int]) -> dict[int, bool | None]:
            raise PermissionError("no")

    lives: Any = Unseen()
    assert living_workers.read_liveness(lives, [1, 2]) == {1: None, 2: None}


# ---- databases that cannot be read -----------------------------------------------------------------------------------------------
def test_a_missing_file_is_not_made(bare: Shop, tmp_path: Path) -> None:
    said = bare.run("pending")
    assert said.code == 4
    assert "groundstate init" in said.err
    if bare.url.startswith("sqlite"):
        assert not (tmp_path / "test.db").exists()


@pytest.mark.parametrize("command", [["pending"], ["why", "orders", "1"], ["check"], ["init"], ["run"], ["held"]])
def test_a_file_that_is_no_database_is_told_by_each_command(sqlite_shop: Shop, tmp_path: Path, command: list[str]) -> None:
    sqlite_shop.engine.dispose()
    for path in tmp_path.glob("test.db-*"):
        path.unlink()
    (tmp_path / "test.db").write_bytes(b"no database at all, and long enough to be looked at" * 50)
    said = sqlite_shop.run(*command)
    assert "is not a SQLite database" in said.err + said.out
    assert said.code == (1 if command == ["check"] else 4)
    assert "Traceback" not in said.err


def test_a_server_that_is_not_there_is_told_in_a_line(postgres_shop: Shop) -> None:
    for command in ("pending", "check", "init"):
        said = elsewhere(postgres_shop, make_url(postgres_shop.url).set(port=1), command)
        assert said.code == 4, said
        assert "the database says" in said.err
        assert "Traceback" not in said.err


def test_on_a_standby_what_was_begun_is_alive_or_in_doubt() -> None:
    assert attempt_text.describe_begun_state(alive=None, has_call=True) == "alive or in doubt"
    assert attempt_text.describe_begun_state(alive=True, has_call=True) == "in the air"
    assert attempt_text.describe_begun_state(alive=False, has_call=True) == "in doubt"


def test_where_no_lock_can_be_seen_it_says_so(shop: Shop) -> None:
    shop.order("placed")
    shop.attempt("paid", "1", State.BEGUN)
    module = __import__(shop.module)

    class Unseen:
        def alive_by_worker(self, lives: list[int]) -> dict[int, bool | None]:
            return dict.fromkeys(lives)

    lives: Any = Unseen()
    database, _ = shop.open()
    report = build_pending_report(shop.name, database, [ConditionQuery(spec, database) for spec in module.app.reactions.values()], lives)
    (begun,) = report.in_doubt
    assert begun.standing == "alive or in doubt"
    assert "from here no lock tells who is alive" in report.in_flight
    assert report.last_end == "whether the last worker ended cleanly cannot be seen from here"


KEY = "0f3a1c5e-9d7b-4e2a-8c61-5b9e7d2f4a10"


def _put(width: int, why: str) -> list[str]:
    made = pending_tables.make_table("reaction", "record", "since", "why", "error")
    made.add_row("charged", f"{KEY} (a round of some length)", "2026-11-30 03:40:00 UTC", why, "-")
    out = io.StringIO()
    pending_tables.print_table(Console(width=width, file=out), made)
    return out.getvalue().splitlines()


def test_a_key_as_long_as_a_uuid_is_in_one_line_where_its_table_fits() -> None:
    lines = _put(84, "it failed")
    assert any(KEY in line for line in lines)
    assert max(map(len, lines)) <= 84
    assert lines[0].split() == ["reaction", "record", "since", "why", "error"]


@pytest.mark.parametrize(("width", "why"), [(60, "it failed"), (84, "its outcome cannot be taken " * 5)])
def test_a_table_that_cannot_be_read_in_the_terminal_shows_its_rows_one_under_the_other(width: int, why: str) -> None:
    assert [line.rstrip() for line in _put(width, why.strip())] == [
        "charged",
        f"  record    {KEY} (a round of some length)",
        "  since     2026-11-30 03:40:00 UTC",
        f"  why       {why.strip()}",
    ]
