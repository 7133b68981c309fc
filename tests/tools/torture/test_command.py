"""The torture's command: what it refuses, before it starts anything; its plan, its table, its report, its reading of logs."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from rich.console import Console
from tools.servers.postgres import ServerError
from tools.torture.plan import KILLS, Plan, draw_actions, trouble_intervals
from tools.torture.run import State
from tools.torture.said import read_errors
from tools.torture.table import Show

from groundstate.engine.call.conclude import OR_CONCLUDED
from tools.torture import __main__ as command
from tools.torture import report


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--kills", "0"], "--kills: more than 0, not 0"),
        (["--kills", "many"], "invalid int value: 'many'"),
        (["--minutes", "-1"], "--minutes: more than 0"),
        (["--minutes", "inf"], "--minutes: more than 0"),
        (["--workers", "0"], "--workers: more than 0"),
        (["--seed", "-1"], "--seed: 0 or more"),
        (["--store", "mysql"], "invalid choice: 'mysql'"),
        (["--report", "/no/such/folder/report.md"], "--report: /no/such/folder/report.md cannot be written"),
        (["--keep", "/"], "--keep: / is there already"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--kil", "3"], "unrecognized arguments: --kil"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(given: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("stops", [ServerError("no programs of PostgreSQL were found"), TimeoutError("it does not come back")])
def test_what_keeps_it_from_judging_is_said_with_the_seed(
    stops: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(plan: Plan, _tell: object) -> State:
        if plan.store == "postgres":
            raise stops
        return State(plan)

    monkeypatch.setattr(command, "run", run)
    assert command.main(["--seed", "9"]) == 3
    told = capsys.readouterr()
    assert "VERDICT sqlite, seed 9: nothing lost, doubled or unlisted" in told.out
    assert f"torture: postgres, seed 9: {type(stops).__name__}: {stops}" in told.err


def test_a_fault_on_one_store_is_the_exit_status_of_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "run", lambda plan, _tell: State(plan, faults=["Listed: it is not"] if plan.store == "sqlite" else []))
    assert command.main(["--seed", "9"]) == 1
    assert "FAULT Listed: it is not" in capsys.readouterr().out


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_short_run_has_each_trouble_once_at_least_and_the_same_seed_gives_the_same_acts(store: str) -> None:
    done = draw_actions(Random(5), 10, store)
    assert trouble_intervals(store).keys() <= set(done)
    assert sum(one in ("kill", "kill two", "kill all", "kill a stopped one") for one in done) == 10
    assert done == draw_actions(Random(5), 10, store)
    assert done != draw_actions(Random(6), 10, store)
    assert draw_actions(Random(5), 400, store).count("deploy") >= 2


def test_of_a_run_with_some_moves_alone_the_others_are_left_out() -> None:
    done = draw_actions(Random(5), 50, "postgres", ("put a copy back", "drain"))
    assert {"put a copy back", "drain"} <= set(done) <= {"put a copy back", "drain", *KILLS}
    assert sum(one in KILLS for one in done) == 50


def state(*faults: str) -> State:
    made = State(Plan("sqlite", kills=5, seed=42), version="SQLite 3.40", disk="a tmpfs", kills=5, tormented_s=2.0, passed_s=9.0)
    made.effects, made.doubts, made.faults = Counter(charge=3), Counter(paid=2, stickered=1), list(faults)
    made.provider = {"finds": {"charge: found": 1, "charge: absent": 4}, "known keys": {"label": 6}, "tricks": {"prompt": 9}}
    made.held_at_the_end = Counter({"paid: the record was deleted": 1})
    return made


def test_the_report_tells_seed_versions_troubles_policies_and_the_verdict(tmp_path: Path) -> None:
    report.write_report(tmp_path / "report.json", [state("Listed: order 1")])
    told = json.loads((tmp_path / "report.json").read_text())["torture"][0]
    assert told["verdict"] == "1 faults"
    assert told["faults"] == ["Listed: order 1"]
    assert told["seed"] == 42
    assert told["kills a second"] == 2.5
    assert told["versions"]["database"] == "SQLite 3.40"
    charge, label = told["calls"]["charge"], told["calls"]["label"]
    assert (charge["effects"], charge["calls in doubt"], charge["finds"]) == (3, 2, {"found": 1, "absent": 4})
    assert (label["calls in doubt"], label["called again under a known key"]) == (1, 6)


def test_the_report_as_markdown_says_the_same(tmp_path: Path) -> None:
    report.write_report(tmp_path / "report.md", [state(), state("Listed: order 1")])
    told = (tmp_path / "report.md").read_text()
    assert "### Torture run on sqlite, seed 42: nothing lost, doubled or unlisted" in told
    assert "- FAULT Listed: order 1" in told
    assert "| charge | ask | 3 | 2 | 1 found, 4 absent | 0 |" in told
    assert "**held at the end**: paid: the record was deleted 1" in told


def test_the_table_is_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Show(Console(file=out, width=60)) as show:
        show.show_progress(state())
        show.show_progress(state())  # a moment later: not said again
    assert out.getvalue().splitlines() == ["sqlite        9 s  sets up    5 of 5 kills  0 orders  3 effects  3 doubts  0 held  0 faults"]


def test_the_table_on_a_terminal_shows_counts_and_faults() -> None:
    out = io.StringIO()
    with Show(Console(file=out, width=160, force_terminal=True, _environ={"TERM": "xterm"})) as show:
        show.show_progress(state("Listed: order [1] has no attempt"))
    assert "charge" in out.getvalue()
    assert "in doubt: paid" in out.getvalue()
    assert "Listed: order [1] has no attempt" in out.getvalue()


LOG = """\
2026-01-01 10:00:00,000 7 WARNING the database is in trouble, tried again in 0.2 s: OperationalError
2026-01-01 10:00:00,001 8 WARNING the database is in trouble, tried again in 0.4 s: OperationalError
2026-01-01 10:00:01,000 7 ERROR a turn failed, tried again in 0.1 s
Traceback (most recent call last):
  File "worker.py", line 3, in turn
sqlalchemy.exc.OperationalError: (psycopg.OperationalError) server closed the connection
2026-01-01 10:00:02,000 7 WARNING the person's round: retry 2, settle --outcome 3
2026-01-01 10:00:02,500 7 WARNING the person's round: retry 1
2026-01-01 10:00:03,000 9 ERROR the database went back in time: a worker began 6 calls
2026-01-01 10:00:04,000 9 ERROR the worker stopped by an error of its own
Traceback (most recent call last):
KeyError: 5
"""


def test_an_error_of_the_database_is_explained_by_the_troubles_and_any_other_is_not(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    read = read_errors(tmp_path / "log")
    assert read.unexplained == {
        "the database went back in time: a worker began # calls": 1,
        "the worker stopped by an error of its own": 1,
        "KeyError: #": 1,
    }
    assert sum(read.explained.values()) == 2
    assert read.warnings == {"the database is in trouble, tried again in #.# s: OperationalError": 2}
    assert read.deeds == {"retry": 3, "settle --outcome": 3}


def test_that_the_database_went_back_is_explained_where_it_was_put_back(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    read = read_errors(tmp_path / "log", ["put a copy back"])
    assert "the database went back in time: a worker began # calls" in read.explained
    assert sum(read.unexplained.values()) == 2


def test_whose_attempts_were_taken_for_deleted_by_hand_is_read_each_once(tmp_path: Path) -> None:
    words = "its attempt was deleted by hand while its call was made: put back, since the record would be called once more"
    lines = [f"2026-01-01 10:00:0{number},000 9 ERROR paid on orders {record}: {words}" for number, record in enumerate([7, 8, 7])]
    lines.append(lines[0].replace("paid on orders 7", "listed on orders 9").replace(": put back", f"{OR_CONCLUDED}: put back"))
    (tmp_path / "log").write_text("\n".join(lines))
    assert read_errors(tmp_path / "log", ["delete an attempt"]).put_back == {"paid on 7", "paid on 8"}


def test_how_many_lines_were_left_out_is_no_fault(tmp_path: Path) -> None:
    line = "mailed: 3 more attempts are held since then, for which no line was written"
    (tmp_path / "log").write_text(f"2026-07-06 12:30:11,423 7 ERROR groundstate: {line}\n")
    read = read_errors(tmp_path / "log")
    assert not read.unexplained
    assert sum(read.explained.values()) == 1
