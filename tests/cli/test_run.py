"""`run`: a worker process, told by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from groundstate.rules.attempt import State
from tests import patience
from tests.cli.conftest import Shop, made
from tests.patience import HANG_S
from tests.postgres.roles import role


@contextmanager
def worker(shop: Shop, *arguments: str, shell: str = '"$@"') -> Iterator[subprocess.Popen[str]]:
    """`groundstate run` in a process of its own; its output is in out.txt and err.txt. shell: how a shell starts it."""
    with Path("out.txt").open("w") as out, Path("err.txt").open("w") as err:
        path = os.pathsep.join([str(Path.cwd()), *sys.path])  # the same code as here
        process = subprocess.Popen(
            ["sh", "-c", f"exec {shell}", "sh", sys.executable, "-m", "groundstate.cli.main", "run", shop.app, *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(what: Callable[[], bool]) -> None:
    patience.until(what, lambda: said("out.txt") + said("err.txt"))


def statuses(shop: Shop) -> list[str]:
    with shop.engine.connect() as connection:
        return list(connection.execute(text("SELECT status FROM orders ORDER BY id")).scalars())


def said(name: str) -> str:
    return Path(name).read_text()


def test_it_carries_out_what_is_left_and_ends_with_0_at_sigterm(shop: Shop) -> None:
    shop.order("placed", 3)
    with worker(shop) as process:
        until(lambda: statuses(shop) == ["packed"] * 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    assert "is carried out by process" in said("err.txt")
    assert "SIGTERM: nothing new is begun" in said("err.txt")
    assert "Traceback" not in said("err.txt")
    assert shop.report()["workers"] == []


def configured(shop: Shop, config: str) -> None:
    """Its module sets logging up when it is imported, as an app does that was written without us in mind."""
    path = Path(f"{shop.module}.py")
    text, line = path.read_text(), f"__import__('logging.config').config.dictConfig({config})"
    path.write_text(text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n\n{line}\n", 1))
    assert line in path.read_text()


def test_an_app_that_configures_logging_by_its_defaults_does_not_silence_it(sqlite_shop: Shop) -> None:
    configured(sqlite_shop, '{"version": 1}')
    with worker(sqlite_shop) as process:
        until(lambda: "is carried out by process" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    assert "SIGTERM: nothing new is begun" in said("err.txt")


def test_log_json_holds_whatever_the_app_configures(sqlite_shop: Shop) -> None:
    console = '{"class": "logging.StreamHandler"}'
    configured(
        sqlite_shop, f'{{"version": 1, "handlers": {{"console": {console}}}, "root": {{"handlers": ["console"], "level": "ERROR"}}}}'
    )
    with worker(sqlite_shop, "--log-json") as process:
        until(lambda: "run_started" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    events = [json.loads(line)["event"] for line in said("err.txt").splitlines()]
    assert {"run_started", "worker_began", "run_ended"} <= set(events)
    assert len(events) == len(set(events)), "lines are written twice"


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_it_runs_where_its_streams_are_closed_and_nothing_else_gets_their_numbers(sqlite_shop: Shop, closed: str) -> None:
    sqlite_shop.order("placed")
    with worker(sqlite_shop, shell=f'"$@" {closed}') as process:
        until(lambda: statuses(sqlite_shop) == ["packed"])
        if Path("/proc").exists():
            for number in range(closed.count("&")):
                assert Path(f"/proc/{process.pid}/fd/{2 - number}").readlink() == Path(os.devnull)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_sigint_drains_as_well(sqlite_shop: Shop) -> None:
    with worker(sqlite_shop) as process:
        until(lambda: "is carried out by process" in said("err.txt"))
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
    assert "Traceback" not in said("err.txt")


def slow(shop: Shop) -> None:
    """Its call takes longer than anybody waits."""
    path = Path(f"{shop.module}.py")
    path.write_text(path.read_text().replace('    return f"r{order.id}"', '    __import__("time").sleep(600)\n    return f"r{order.id}"'))


def test_a_second_signal_ends_it_at_once_and_what_was_in_the_air_is_in_doubt(shop: Shop) -> None:
    slow(shop)
    shop.order("placed")
    with worker(shop, "--drain", "600") as process:
        until(lambda: shop.report()["counts"]["in the air"] == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: "SIGTERM: nothing new" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 143
    until(lambda: shop.report()["counts"]["in doubt"] == 1)
    assert "ended uncleanly" in shop.report()["last_end"]


def test_a_second_sigint_ends_with_130(sqlite_shop: Shop) -> None:
    slow(sqlite_shop)
    sqlite_shop.order("placed")
    with worker(sqlite_shop, "--drain", "600") as process:
        until(lambda: sqlite_shop.report()["counts"]["in the air"] == 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: "SIGTERM: nothing new" in said("err.txt"))
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 130


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_past_the_drain_limit_it_ends_by_itself_and_leaves_a_doubt_and_that_is_no_unclean_end(sqlite_shop: Shop, sync: bool) -> None:
    slow(sqlite_shop)
    sqlite_shop.order("placed")
    path = Path(f"{sqlite_shop.module}.py")
    awaited = '    await __import__("asyncio").sleep'
    if not sync:
        path.write_text(path.read_text().replace("def charge(", "async def charge(").replace('    __import__("time").sleep', awaited))
    with worker(sqlite_shop, "--drain", "0.2") as process:
        until(lambda: sqlite_shop.report()["counts"]["in the air"] == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    report = sqlite_shop.report()
    assert report["counts"]["in doubt"] == 1
    assert report["last_end"].startswith("the last worker ended, and left 1 call in doubt")
    for command in ("status", "pending"):
        shown = sqlite_shop.run(command).out
        assert "ended, and left 1 call in doubt" in shown
        assert "uncleanly" not in shown
    assert "cleanly; calls left in doubt: 1" in said("err.txt")


def test_a_signal_ends_a_start_that_waits_for_its_database_at_once_and_with_0(folder: Path, postgres_url: str) -> None:
    with role(postgres_url, options="connection limit 0") as login:
        shop = made(folder, login)
        module = Path(f"{shop.module}.py")
        module.write_text(f"{module.read_text()}\nfrom groundstate.engine.recover import startup\nstartup.LOCKED_OUT_S = 3600.0\n")
        with worker(shop) as process:
            until(lambda: said("err.txt").count("the database is in trouble, tried again") > 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
        shop.engine.dispose()
    assert "SIGTERM: nothing new is begun" in said("err.txt")
    assert "is carried out by process" not in said("err.txt")


def test_a_handler_that_hangs_is_in_the_log_with_where_it_stands_once_and_left_behind_at_the_end(sqlite_shop: Shop) -> None:
    module = Path(f"{sqlite_shop.module}.py")
    hanging = module.read_text().replace('    order.status = "packed"', '    __import__("time").sleep(600)')
    module.write_text(f"{hanging}\nfrom groundstate.engine.worker import worker\nworker.LEAVES_S = 0.5\n")
    sqlite_shop.order("paid")
    with worker(sqlite_shop, "--stuck", "1", "--drain", "0.5") as process:
        until(lambda: "has been stuck for" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 6
    stuck, _, left = said("err.txt").partition("SIGTERM: nothing new")
    assert stuck.count("has been stuck for") == 1
    assert left.count("and is left behind") == 1
    for told in (stuck, left):
        assert f'{module.name}", line ' in told
        assert '__import__("time").sleep(600)' in map(str.strip, told.splitlines()), "each line of the stack is one of its own"
    assert "but a worker could not write that it ended" in left.splitlines()[-1]
    assert statuses(sqlite_shop) == ["paid"]


def test_held_carries_out_nothing_until_it_is_told_to_go(sqlite_shop: Shop) -> None:
    sqlite_shop.order("paid", 2)
    with worker(sqlite_shop, "--wait-for-go") as process:
        until(lambda: "Waiting for a go: nothing is carried out" in said("err.txt"))
        assert statuses(sqlite_shop) == ["paid", "paid"]
        assert "To be carried out" in said("out.txt")
        assert [one["alive"] for one in sqlite_shop.report()["workers"]] == [True]
        process.send_signal(signal.SIGUSR1)
        until(lambda: statuses(sqlite_shop) == ["packed", "packed"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_held_can_be_told_to_stop_instead(sqlite_shop: Shop) -> None:
    sqlite_shop.order("paid")
    with worker(sqlite_shop, "--wait-for-go") as process:
        until(lambda: "Waiting for a go: nothing is carried out" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    assert statuses(sqlite_shop) == ["paid"]


def test_hazard_49_reactions_that_match_old_rows_are_refused_loudly_and_the_others_run(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DELETE FROM groundstate_reaction WHERE name = 'packed'")
    sqlite_shop.order("paid")
    sqlite_shop.order("placed")
    with worker(sqlite_shop) as process:
        until(lambda: statuses(sqlite_shop) == ["paid", "paid"] and "packed is not started" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_accept_starts_them(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DELETE FROM groundstate_reaction WHERE name = 'packed'")
    sqlite_shop.order("paid")
    with worker(sqlite_shop, "--accept") as process:
        until(lambda: statuses(sqlite_shop) == ["packed"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_accept_leaves_out_what_would_call_and_accept_as_says_what_is_known_of_it(sqlite_shop: Shop) -> None:
    sqlite_shop.sql("DELETE FROM groundstate_reaction WHERE name IN ('packed', 'paid')")
    sqlite_shop.order("paid")
    sqlite_shop.order("placed")
    with worker(sqlite_shop, "--accept") as process:
        until(lambda: statuses(sqlite_shop) == ["packed", "placed"] and "paid is not started" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    with worker(sqlite_shop, "--accept-as", "call") as process:
        until(lambda: statuses(sqlite_shop) == ["packed", "packed"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0


def test_accept_as_takes_two_words(sqlite_shop: Shop) -> None:
    assert sqlite_shop.run("run", "--accept-as", "perhaps").code == 2


def test_hazard_46_after_restore_puts_what_matches_in_doubt(sqlite_shop: Shop) -> None:
    sqlite_shop.order("placed")
    with worker(sqlite_shop, "--after-restore") as process:
        until(lambda: sqlite_shop.report()["suspects"] != [])
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    assert sqlite_shop.report()["counts"]["in doubt"] == 1
    assert "went back in time" in sqlite_shop.run("pending").out


def test_attempts_that_this_code_does_not_declare_refuse_a_start_and_are_left_alone_where_that_is_said(shop: Shop) -> None:
    shop.attempt("charged", "9", State.HELD, why="for a reason")
    shop.order("placed")
    refused = shop.run("run")
    assert (refused.code, "--leave-undeclared" in refused.err) == (4, True)
    with worker(shop, "--leave-undeclared", "--log-json") as process:
        until(lambda: statuses(shop) == ["packed"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    lines = [json.loads(line) for line in said("err.txt").splitlines()]
    told = [(line["level"], line["reactions"], line["count"]) for line in lines if line.get("event") == "undeclared_left"]
    assert told == [("WARNING", ["charged"], 1)]
    report = shop.report()
    assert (report["undeclared"], report["counts"]["held"]) == ({"charged": 1}, 1)
    assert [one["record"] for one in shop.run("held", "--json").json["held"]] == ["9"]


def test_a_database_that_is_not_initialised_is_told(bare: Shop) -> None:
    ended = bare.run("run")
    assert ended.code == 4
    assert "groundstate init" in ended.err


def test_two_different_apps_are_refused(sqlite_shop: Shop) -> None:
    ended = sqlite_shop.run("run", "other:app")
    assert ended.code == 2
    assert "give one" in ended.err


def test_a_drain_below_zero_is_refused(sqlite_shop: Shop) -> None:
    assert sqlite_shop.run("run", "--drain", "-1").code == 2
