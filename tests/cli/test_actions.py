"""The commands by which a person acts: what they print, their JSON, their exit codes, and what they say to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from sqlalchemy import Engine, create_engine, insert, select, update
from sqlalchemy.orm import Session

from groundstate.cli.main import main
from groundstate.clock import SYSTEM_DICE
from groundstate.engine.rows import attempts
from groundstate.rules.attempt import Attempt, State
from groundstate.store import connect, tables
from groundstate.values import keys
from tests.cli import persons_shop
from tests.cli.persons_shop import Order, app
from tests.engine.kit import forcing

APP = "tests.cli.persons_shop:app"
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        said = json.loads(self.out)
        assert said["groundstate"] == 1
        return said


class Shop:
    """The shop's database, and the command line at it."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.engine: Engine = create_engine(connect.resolve_settings(url, None, None, "lossy").url)
        self._capsys = capsys
        app.init(tables=True, accept=True)

    def run(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--app", APP])
        printed = self._capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        assert "Traceback" not in printed.err
        return Said(code or 0, printed.out, printed.err)

    def held(self, *records: int, **values: Any) -> None:
        """Orders whose attempts are held."""
        base = Attempt(
            "persons-shop", "paid", "", "", State.HELD, worker=7, call=1, call_no=1, unsure=True, since=LONG_AGO, first_at=LONG_AGO,
            deadline=LONG_AGO, blocks="orders", error="the line went dead",
            why="in doubt, and its policy is InDoubt.hold(): a person decides",
        )  # fmt: skip
        with Session(self.engine) as session, session.begin():
            session.add_all([Order(id=number) for number in records if session.get(Order, number) is None])
            for number in records:
                one = replace(base, record=str(number), call=attempts.new_call_number(SYSTEM_DICE), **values)
                session.execute(insert(tables.attempt).values(**attempts.column_values(one)))

    def order(self, number: int) -> Order:
        with Session(self.engine) as session:
            found = session.get(Order, number)
            assert found is not None
            return found

    def set(self, number: int, status: str) -> None:
        with Session(self.engine) as session, session.begin():
            session.execute(update(Order).where(Order.id == number).values(status=status))

    def states(self) -> dict[str, str]:
        with self.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(select(tables.attempt.c.record, tables.attempt.c.state))}


@pytest.fixture
def shop(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    monkeypatch.setenv(persons_shop.URL, database_url)
    monkeypatch.setenv("COLUMNS", "160")
    made = Shop(database_url, capsys)
    yield made
    made.engine.dispose()


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Somebody sits at a terminal, and answers this; what was asked is kept."""

    def answers(word: str) -> list[str]:
        asked: list[str] = []
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", _confirm(word, asked))
        return asked

    return answers


def _confirm(word: str, asked: list[str]) -> Callable[..., bool]:
    def confirm(question: str, *, abort: bool, err: bool) -> bool:
        assert abort
        assert err
        asked.append(question)
        if word != "y":
            raise typer.Abort
        return True

    return confirm


# ---- held ------------------------------------------------------------------------------------------------------------------------
def test_nothing_held_is_said_so(shop: Shop) -> None:
    said = shop.run("held")
    assert (said.code, said.out) == (0, "Nothing is held.\n")
    assert shop.run("held", "--json").json == {
        "groundstate": 1, "command": "held", "held": [], "total": 0, "baselines": 0, "more": None, "others": [],
    }  # fmt: skip


def test_what_is_held_is_a_table_with_what_can_be_done(shop: Shop) -> None:
    shop.held(1, 2)
    said = shop.run("held")
    assert said.code == 0
    for words in ("paid", "a person decides", "may be made", "settle --absent", "2 of 2 held."):
        assert words in said.out


def test_in_full_there_are_key_error_and_store_and_no_terminal_escapes(shop: Shop) -> None:
    shop.held(1, error="line\x1b[31m")
    said = shop.run("held", "--long")
    for words in (keys.call_key("persons-shop", "paid", "1", ""), "orders 1", "line\\x1b[31m", "calls 1"):
        assert words in said.out
    assert "\x1b[31m" not in said.out


def test_held_as_json_has_each_field_for_programs(shop: Shop) -> None:
    shop.held(1)
    (one,) = shop.run("held", "--json").json["held"]
    assert one["key"] == keys.call_key("persons-shop", "paid", "1", "")
    assert one["can"] == ["settle --absent", "settle --outcome"]
    assert "forget" not in shop.run("held").out
    assert (one["reaction"], one["record"], one["unsure"], one["calls"], one["outcome"]) == ("paid", "1", True, 1, None)
    assert one["since"].endswith("Z")


def test_held_comes_in_pages_and_filtered(shop: Shop) -> None:
    shop.held(1, 2, 3)
    shop.held(4, why="baseline", unsure=False)
    first = shop.run("held", "--limit", "2", "--json").json
    assert ([one["record"] for one in first["held"]], first["total"], first["baselines"]) == (["1", "2"], 3, 1)
    rest = shop.run("held", "--limit", "2", "--after", first["more"], "--json").json
    assert ([one["record"] for one in rest["held"]], rest["more"]) == (["3"], None)
    assert [one["record"] for one in shop.run("held", "--baseline", "--json").json["held"]] == ["4"]
    assert shop.run("held", "--sure").out.startswith("Nothing is held that matches.")
    assert "1 row is left out as baseline" in shop.run("held").out


def test_a_bad_cursor_and_a_bad_limit_are_refused(shop: Shop) -> None:
    said = shop.run("held", "--after", "nonsense")
    assert (said.code, "is no cursor" in said.err) == (2, True)
    assert shop.run("held", "--limit", "0").code == 2


# ---- settle ----------------------------------------------------------------------------------------------------------------------
def test_settle_with_an_outcome_runs_the_handler(shop: Shop) -> None:
    shop.held(1)
    said = shop.run("settle", "paid", "1", "--outcome", '"r1"', "--by", "ada")
    assert (said.code, said.out) == (0, "paid on 1: concluded: its outcome is in the record\n")
    assert (shop.order(1).status, shop.order(1).receipt, shop.states()) == ("paid", "r1", {})


def test_settle_reads_an_outcome_from_stdin(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.held(1)
    monkeypatch.setattr("sys.stdin.read", lambda: '"r1"\n', raising=False)
    assert shop.run("settle", "paid", "1", "--outcome", "-").code == 0
    assert shop.order(1).receipt == "r1"


def test_settle_as_absent_gives_it_back_to_the_workers(shop: Shop) -> None:
    shop.held(1)
    said = shop.run("settle", "paid", "1", "--absent", "--json").json
    assert (said["command"], said["became"], said["record"]) == ("settle", "failed", "1")
    assert shop.states() == {"1": "failed"}


def test_settle_as_absent_too_early_is_not_possible_and_says_until_when(shop: Shop) -> None:
    shop.held(1, deadline=datetime.now(UTC) + timedelta(hours=1))
    said = shop.run("settle", "paid", "1", "--absent")
    assert (said.code, "may still be on its way until" in said.err, shop.states()) == (1, True, {"1": "held"})


def test_an_outcome_whose_handler_fails_is_said_and_is_no_success(shop: Shop) -> None:
    shop.held(1)
    said = shop.run("settle", "paid", "1", "--outcome", '"bad"')
    assert said.code == 1
    assert "still held: the handler raised ValueError: no such receipt" in said.out
    assert shop.states() == {"1": "held"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["paid", "1"], 2, "give one of the two"),
        (["paid", "1", "--absent", "--outcome", '"r1"'], 2, "give one of the two"),
        (["paid", "1", "--outcome", "{"], 1, "no outcome of type str"),
        (["paid", "1", "--outcome", "5"], 1, "no outcome of type str"),
        (["paid", "9", "--absent"], 3, "no attempt of paid stands on 9"),
        (["paid", "x", "--absent"], 3, "no primary key of Order"),
        (["payed", "1", "--absent"], 3, "there are paid"),
        (["paid", "1", "--absent", "--occurrence", "2"], 3, "for occurrence '2'"),
        (["paid"], 2, "Missing argument"),
    ],
)
def test_bad_input_to_settle_is_refused_with_a_cure_and_changes_nothing(shop: Shop, arguments: list[str], code: int, words: str) -> None:
    shop.held(1)
    said = shop.run("settle", *arguments)
    assert (said.code, words in said.err.replace("\n", " ")) == (code, True), said
    assert shop.states() == {"1": "held"}


def test_an_error_is_json_too_where_json_was_asked_for(shop: Shop) -> None:
    said = shop.run("settle", "paid", "9", "--absent", "--json")
    assert said.code == 3
    assert said.json["error"]["kind"] == "NotFoundError"


# ---- retry -----------------------------------------------------------------------------------------------------------------------
def test_retry_of_an_outcome_in_hand_concludes_it_here_and_now(shop: Shop) -> None:
    shop.held(1, outcome='["r1"]', unsure=False)
    said = shop.run("retry", "paid", "1")
    assert (said.code, shop.order(1).receipt, shop.states()) == (0, "r1", {})


def test_retry_of_a_doubt_under_hold_is_not_possible(shop: Shop) -> None:
    shop.held(1)
    said = shop.run("retry", "paid", "1")
    assert (said.code, "settle it as absent or with its outcome first" in said.err) == (1, True)


def test_retry_all_does_what_it_can_and_says_what_it_could_not(shop: Shop) -> None:
    shop.held(1, 2, outcome='["r1"]', unsure=False)
    shop.held(3, outcome='["bad"]', unsure=False)
    shop.held(4)
    shop.held(5, why="baseline", unsure=False)
    said = shop.run("retry", "--all", "--reaction", "paid")
    assert said.code == 1
    assert "paid: 2 concluded, 1 still held, 1 not possible" in said.out
    assert "  4: nobody can say what became of its call" in said.out
    assert shop.states() == {"3": "held", "4": "held", "5": "held"}


def test_retry_all_as_json_counts_and_lists_what_was_not_done(shop: Shop) -> None:
    shop.held(1, outcome='["r1"]', unsure=False)
    shop.held(2)
    said = shop.run("retry", "--all", "--reaction", "paid", "--json")
    assert said.json["counts"] == {"concluded": 1, "refused": 1}
    assert [one["record"] for one in said.json["not_done"]] == ["2"]


def test_retry_all_of_baseline_and_of_failed_ones_only_where_that_is_said(shop: Shop) -> None:
    shop.held(1, why="baseline", unsure=False)
    shop.held(2, state=State.FAILED, unsure=False, next_at=datetime(2100, 1, 1, tzinfo=UTC))
    assert shop.run("retry", "--all", "--reaction", "paid").out == "paid: nothing to do.\n"
    assert shop.run("retry", "--all", "--reaction", "paid", "--failed").out == "paid: 1 will be tried again\n"
    assert shop.run("retry", "--all", "--reaction", "paid", "--baseline").out == "paid: 1 will be tried again\n"
    assert shop.states() == {"1": "failed", "2": "failed"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "which attempt?"),
        (["paid"], 2, "which attempt?"),
        (["--all"], 2, "--all --reaction NAME"),
        (["paid", "1", "--all"], 2, "--all --reaction NAME"),
        (["paid", "1", "--failed"], 2, "go with --all"),
        (["--all", "--reaction", "payed"], 3, "there are paid"),
    ],
)
def test_bad_input_to_retry_is_refused_with_a_cure(shop: Shop, arguments: list[str], code: int, words: str) -> None:
    shop.held(1)
    said = shop.run("retry", *arguments)
    assert (said.code, words in said.err) == (code, True), said
    assert shop.states() == {"1": "held"}


def test_at_a_terminal_a_bulk_act_is_asked_for_and_no_means_no(shop: Shop, at_a_terminal: Callable[[str], list[str]]) -> None:
    shop.held(1, 2, unsure=False)
    at_a_terminal("n")
    assert shop.run("retry", "--all", "--reaction", "paid").code == 1
    assert shop.states() == {"1": "held", "2": "held"}
    assert shop.run("retry", "--all", "--reaction", "paid", "--yes").code == 0
    assert shop.states() == {"1": "failed", "2": "failed"}


def test_at_a_terminal_yes_goes_on(shop: Shop, at_a_terminal: Callable[[str], list[str]]) -> None:
    shop.held(1, unsure=False)
    asked = at_a_terminal("y")
    assert shop.run("retry", "--all", "--reaction", "paid").code == 0
    assert asked == ["retry 1 attempt of paid?"]
    assert shop.states() == {"1": "failed"}


# ---- forget ----------------------------------------------------------------------------------------------------------------------
def test_forget_all_of_what_was_left_out_only_where_that_is_said(shop: Shop) -> None:
    shop.held(1, 2, why="baseline", unsure=False)
    shop.held(3, why="baseline", unsure=False, reaction="shipped")
    shop.set(2, "cancelled")
    assert shop.run("forget", "--all", "--reaction", "paid", "--yes").out == "paid: nothing to do.\n"
    said = shop.run("forget", "--all", "--baseline", "--reaction", "paid", "--yes")
    assert (said.code, "paid: 1 gone, 1 not possible" in said.out, "would be a new call" in said.out) == (1, True, True)
    said = shop.run("forget", "--all", "--baseline", "--reaction", "shipped", "--yes", "--json")
    assert (said.code, said.json["counts"]) == (0, {"deleted": 1})
    assert shop.states() == {"1": "held"}


def test_forget_is_refused_while_the_condition_holds_and_done_afterwards(shop: Shop) -> None:
    shop.held(1)
    said = shop.run("forget", "paid", "1")
    assert (said.code, "would be a new call" in said.err) == (1, True)
    shop.set(1, "cancelled")
    assert shop.run("forget", "paid", "1").code == 0
    assert shop.states() == {}


def test_forget_all_forgets_what_no_longer_holds(shop: Shop) -> None:
    shop.held(1, 2)
    shop.set(1, "cancelled")
    said = shop.run("forget", "--all", "--reaction", "paid")
    assert (said.code, "1 gone, 1 not possible" in said.out) == (1, True)
    assert shop.states() == {"2": "held"}
    said = shop.run("forget", "paid", "2", "--baseline")
    assert (said.code, "--baseline goes with --all" in said.err) == (2, True)


# ---- trust, rename ---------------------------------------------------------------------------------------------------------------
def test_trust_says_what_is_trusted_again_and_what_is_still_open(shop: Shop) -> None:
    assert shop.run("trust").out == "Nothing was suspect.\n"
    with shop.engine.begin() as connection:
        connection.execute(update(tables.reaction).where(tables.reaction.c.name == "paid").values(suspect=True))
    shop.held(1)
    shop.held(2, state=State.DOUBT, next_at=LONG_AGO)
    said = shop.run("trust", "paid", "--json").json
    assert (said["trusted"], said["in_doubt"], said["held_unsure"]) == (["paid"], 1, 1)
    said_again = shop.run("trust")
    assert "1 attempt is still in doubt" in said_again.out
    assert shop.run("trust", "payed").code == 3


def test_rename_carries_attempts_over_and_keeps_the_key(shop: Shop) -> None:
    shop.held(1)
    with forcing(shop.engine) as connection:
        connection.execute(update(tables.attempt).values(reaction="charged"))
        connection.execute(update(tables.reaction).where(tables.reaction.c.name == "paid").values(name="charged", key_name="charged"))
    said = shop.run("rename", "charged", "paid")
    assert (said.code, "charged is paid now, with 1 attempt." in said.out) == (0, True)
    (one,) = shop.run("held", "--json").json["held"]
    assert (one["reaction"], one["key"]) == ("paid", keys.call_key("persons-shop", "charged", "1", ""))
    assert shop.run("rename", "charged", "paid").code == 3
    assert shop.run("rename", "paid", "paid").code == 1


def test_rename_to_a_name_that_this_code_does_not_say_is_noted(shop: Shop) -> None:
    said = shop.run("rename", "paid", "other")
    assert (said.code, "declares no reaction 'other'" in said.out) == (0, True)


def test_the_whole_app_is_renamed(shop: Shop) -> None:
    shop.held(1)
    with forcing(shop.engine) as connection:
        connection.execute(update(tables.attempt).values(app="old-shop"))
        connection.execute(update(tables.reaction).where(tables.reaction.c.name == "paid").values(app="old-shop"))
    said = shop.run("rename", "--whole-app", "old-shop", "persons-shop", "--json").json
    assert (said["attempts"], said["reactions"], said["declared"]) == (1, 1, True)
    (one,) = shop.run("held", "--json").json["held"]
    assert one["key"] == keys.call_key("old-shop", "paid", "1", "")
    assert shop.run("rename", "--whole-app", "old-shop", "persons-shop").code == 3


# ---- a database that is not there ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command", [["held"], ["retry", "paid", "1"], ["trust"], ["rename", "a", "b"], ["forget", "--all", "--reaction", "paid"]]
)
def test_without_our_tables_each_command_says_to_run_init(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setenv(persons_shop.URL, database_url)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--app", APP])
    assert ended.value.code == 4
    assert "groundstate init" in capsys.readouterr().err
