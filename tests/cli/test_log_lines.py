"""The log: each line has the name of an event that the docs tell of, and as JSON it is one line whatever is in it."""

from __future__ import annotations

import ast
import json
import logging
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from groundstate.cli import run
from groundstate.cli.common import EscapingFormatter
from groundstate.cli.json_log import OURS, JsonLines
from tests.cli.conftest import Shop
from tests.cli.test_run import said, statuses, until, worker
from tests.docs.blocks import ROOT
from tests.patience import HANG_S

SOURCE = ROOT / "src" / "groundstate"
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR", "log": None}
VARYING = {"lines_left_out": {"INFO", "WARNING", "ERROR"}}  # the level of the lines that it stands for


@dataclass(frozen=True)
class Line:
    """A place in the source that logs."""

    place: str
    level: str | None
    event: str
    fields: frozenset[str]


def calls_of(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            named = node.func.value
            if isinstance(named, ast.Name) and re.fullmatch(r"_?(log|logger)", named.id):
                yield node


def lines() -> list[Line]:
    """Of the whole source, but the demo and what tests are made of. Fails where one has no event."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if {"demo", "testing"} & set(path.relative_to(SOURCE).parts):
            continue
        for call in calls_of(path):
            place = f"{path.relative_to(ROOT)}:{call.lineno}"
            extra = next((one.value for one in call.keywords if one.arg == "extra"), None)
            assert isinstance(extra, ast.Dict), f'{place} logs without extra={{"event": ...}}'
            given = {ast.literal_eval(key): value for key, value in zip(extra.keys, extra.values, strict=True) if key is not None}
            assert next(iter(given)) == "event", place
            assert isinstance(call.func, ast.Attribute)
            found.append(Line(place, LEVELS[call.func.attr], ast.literal_eval(given.pop("event")), frozenset(given)))
    return found


def told() -> dict[str, tuple[set[str], set[str]]]:
    """What the docs tell of: levels and fields of each event."""
    section = (ROOT / "docs" / "operating.md").read_text().partition("\n## Logs\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| `(\w+)` \| ([A-Z, ]+) \|([^|]*)\|", section)
    assert len(rows) == len({row[0] for row in rows}), "an event is told of twice"
    return {name: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for name, levels, fields in rows}


def test_a_line_that_names_a_record_says_of_which_table() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        for call in calls_of(path):
            words = next((one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)), "")
            assert not re.match(r"%s on %s(?! %s)", words), f"{path.relative_to(ROOT)}:{call.lineno}: let attempt_log.named name it"


def test_each_line_of_the_log_has_an_event_that_the_docs_tell_of_and_they_tell_of_no_other() -> None:
    documented = told()
    logged: dict[str, tuple[set[str], set[str]]] = {}
    for line in lines():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", line.event), line
        levels, fields = logged.setdefault(line.event, (set(), set()))
        levels |= {line.level} if line.level else VARYING.get(line.event, {"WARNING", "ERROR"})
        fields |= line.fields
    assert sorted(logged.keys() - documented.keys()) == [], "docs/operating.md tells nothing of these"
    assert sorted(documented.keys() - logged.keys()) == [], "docs/operating.md tells of these, and no code logs them"
    assert {name: both for name, both in logged.items() if both != documented[name]} == {}, "docs/operating.md says otherwise of these"


def test_no_field_has_the_name_of_something_else() -> None:
    taken = set(vars(logging.makeLogRecord({}))) | {*OURS, "asctime", "taskName"}
    assert [line for line in lines() if line.fields & taken] == []


def record(message: str, *arguments: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("groundstate").makeRecord(
        "groundstate", logging.WARNING, __file__, 1, message, arguments, None, extra=extra or None
    )  # fmt: skip


@pytest.mark.parametrize("nasty", ["a\nb", 'a"b', "\x1b[31mred", "a\u2028b", "\ud800", "\0", '"}\n{"level": "ERROR"}'])
def test_nothing_from_data_breaks_a_line(nasty: str) -> None:
    line = JsonLines().format(record("%s on %s: it failed", nasty, nasty, event="handler_failed", record=nasty))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    read = json.loads(line)
    assert (read["event"], read["record"], read["level"]) == ("handler_failed", nasty, "WARNING")
    assert read["message"] == f"{nasty} on {nasty}: it failed"


def test_a_line_of_somebody_elses_has_no_event_and_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        made = logging.getLogger("other").makeRecord("other", logging.ERROR, __file__, 1, "it broke", (), sys.exc_info())
    line = JsonLines().format(made)
    read = json.loads(line)
    assert len(line.splitlines()) == 1
    assert "event" not in read
    assert read["traceback"].endswith("ValueError: a\nb")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read["time"])


def test_a_line_of_text_has_its_time_in_utc_whatever_the_hosts_zone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Karachi")
    time.tzset()
    try:
        line = record("%s is done", "it")
        line.created = datetime(2026, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC).timestamp()
        shown = EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s").format(line)
        at_a_terminal = run._time_in_utc(datetime.fromtimestamp(line.created)).plain  # noqa: DTZ006  # as rich gives it
    finally:
        monkeypatch.undo()
        time.tzset()
    assert shown.startswith("2026-01-01 12:00:00.123Z ")
    assert at_a_terminal == "12:00:00Z"


def test_a_worker_logs_json_alone_from_its_start_to_its_end(sqlite_shop: Shop) -> None:
    module = Path(f"{sqlite_shop.module}.py")
    raising = '    if order.id == 1:\n        raise ValueError("a\\nb")\n'
    module.write_text(module.read_text().replace('    order.status = "packed"', f'{raising}    order.status = "packed"'))
    sqlite_shop.order("paid", 2)
    with worker(sqlite_shop, "--log-json") as process:
        until(lambda: statuses(sqlite_shop) == ["paid", "packed"] and "handler_failed" in said("err.txt"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    read = [json.loads(line) for line in said("err.txt").splitlines()]
    events = [one["event"] for one in read]
    assert events[:2] == ["worker_began", "run_started"]
    assert events[-2:] == ["run_stopping", "run_ended"]
    assert (read[-1]["in_doubt"], read[-1]["clean"]) == (0, True)
    assert 0 < read[-1]["took_s"] < HANG_S
    failed = next(one for one in read if one["event"] == "handler_failed")
    assert (failed["reaction"], failed["record"], failed["level"]) == ("packed", "1", "WARNING")


def test_a_start_that_is_refused_is_a_line_as_well(bare: Shop) -> None:
    with worker(bare, "--log-json") as process:
        assert process.wait(HANG_S) == 4
    read = [json.loads(line) for line in said("err.txt").splitlines()]
    assert (read[-1]["event"], read[-1]["exit_code"]) == ("run_failed", 4)
    assert "groundstate init" in read[-1]["message"]
