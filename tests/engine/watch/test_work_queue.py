"""The three parts of a work queue: each is the only writer of its fields, and reaches exactly the states of its table."""

from __future__ import annotations

import ast
import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest

from groundstate.engine.sql.group_scan import GroupPasses
from groundstate.engine.sql.raising_rows import RaisingRowSearch
from groundstate.engine.watch import waiting_rows
from groundstate.engine.watch.due_work import DueWork
from groundstate.engine.watch.postponement import FAILING_MOST, Postponement
from groundstate.engine.watch.waiting_rows import LONG, WaitingRows
from groundstate.engine.watch.work_queue import WorkQueue
from groundstate.rules.circuit_breaker import Breaker
from tests.docs.blocks import ROOT
from tests.engine.watch.work_queue_states import TABLES, State

NOW = 100.0
KEY, CURSOR = (1,), (7,)
MANY = [(number,) for number in range(3)]  # more keys than FRESH_MAX in these tests
FAILED = [(number,) for number in range(FAILING_MOST)]
PARTS = {"rows": WaitingRows, "postponement": Postponement, "due_work": DueWork}  # by the attribute of WorkQueue

Part = Any  # one of the three parts
Action = Callable[[Part], object]

# For each public method, calls of it with arguments that make a difference.
ACTIONS: Mapping[type, Mapping[str, list[Action]]] = {
    WaitingRows: {
        "note_keys": [lambda rows: rows.note_keys([]), lambda rows: rows.note_keys([KEY]), lambda rows: rows.note_keys(MANY)],
        "note_unknown_keys": [lambda rows: rows.note_unknown_keys(), lambda rows: rows.note_unknown_keys(spread=True)],
        "take_over_hints": [lambda rows: rows.take_over_hints()],
        "add_fresh_keys": [lambda rows: rows.add_fresh_keys([KEY])],
        "put_keys_first": [lambda rows: rows.put_keys_first([KEY])],
        "take_new_keys": [lambda rows: rows.take_new_keys(1), lambda rows: rows.take_new_keys(len(MANY))],
        "drop_fresh_keys": [lambda rows: rows.drop_fresh_keys()],
        "request_pass": [lambda rows: rows.request_pass()],
        "request_pass_for_due_record": [lambda rows: rows.request_pass_for_due_record()],
        "note_rows_found": [lambda rows: rows.note_rows_found()],
        "note_newest_queried": [lambda rows: rows.note_newest_queried()],
        "begin_at_start": [lambda rows: rows.begin_at_start()],
        "skip_rows_until": [lambda rows: rows.skip_rows_until(CURSOR)],
        "move_cursor": [lambda rows: rows.move_cursor(None), lambda rows: rows.move_cursor(CURSOR)],
        "advance": [
            lambda rows: rows.advance(CURSOR, read=LONG, limit=LONG, taken=LONG),
            lambda rows: rows.advance(CURSOR, read=2, limit=2, taken=0),
            lambda rows: rows.advance(CURSOR, read=1, limit=2, taken=1),
        ],
        "end_pass": [lambda rows: rows.end_pass(), lambda rows: rows.end_pass(again=True)],
        "note_long_backlog": [lambda rows: rows.note_long_backlog()],
        "note_long_backlog_reported": [lambda rows: rows.note_long_backlog_reported()],
        "leave_backlog_to_others": [lambda rows: rows.leave_backlog_to_others()],
        "rejoin_backlog": [lambda rows: rows.rejoin_backlog()],
        "move_query_aside": [lambda rows: rows.move_query_aside()],
        "return_query_to_own_thread": [lambda rows: rows.return_query_to_own_thread()],
        "record_query_duration": [lambda rows: rows.record_query_duration(1.0)],
        "limit_next_batch": [lambda rows: rows.limit_next_batch(5)],
        "adapt_batch_size": [lambda rows: rows.adapt_batch_size(100, 0.01, 0.01, 0.05)],
    },
    Postponement: {
        "limit_records": [lambda waits: waits.limit_records(8, NOW)],
        "admit": [lambda waits: waits.admit()],
        "wait_for_acceptance": [lambda waits: waits.wait_for_acceptance()],
        "postpone": [lambda waits: waits.postpone(NOW), lambda waits: waits.postpone(NOW, 5.0)],
        "postpone_until": [lambda waits: waits.postpone_until(NOW)],
        "try_next_at": [lambda waits: waits.try_next_at(0.0), lambda waits: waits.try_next_at(NOW)],
        "note_success": [lambda waits: waits.note_success()],
        "wait_for_lock": [lambda waits: waits.wait_for_lock("a migration", NOW, 2.0)],
        "end_wait_for_lock": [lambda waits: waits.end_wait_for_lock()],
        "note_lack": [lambda waits: waits.note_lack("a column is missing")],
        "confirm_lack": [lambda waits: waits.confirm_lack()],
        "end_lack": [lambda waits: waits.end_lack()],
        "begin_search": [lambda waits: waits.begin_search(RaisingRowSearch(), NOW, 10.0)],
        "end_search": [lambda waits: waits.end_search(NOW, None), lambda waits: waits.end_search(NOW, NOW + 60.0)],
        "note_failing_rows_tried": [lambda waits: waits.note_failing_rows_tried(NOW)],
        "count_handler_results": [
            lambda waits: waits.count_handler_results(1, [], NOW),
            lambda waits: waits.count_handler_results(0, [KEY], NOW),
            lambda waits: waits.count_handler_results(0, FAILED, NOW),
        ],
        "note_pause_logged": [lambda waits: waits.note_pause_logged(NOW)],
    },
    DueWork: {
        "request_attempts": [lambda due: due.request_attempts()],
        "request_attempts_from_start": [lambda due: due.request_attempts_from_start()],
        "wait_for_slot": [lambda due: due.wait_for_slot(None), lambda due: due.wait_for_slot(CURSOR)],
        "advance": [lambda due: due.advance(CURSOR)],
        "note_no_more_attempts": [lambda due: due.note_no_more_attempts()],
        "set_timers": [lambda due: due.set_timers([]), lambda due: due.set_timers([NOW, NOW + 1.0])],
        "drop_timers_until": [lambda due: due.drop_timers_until(NOW), lambda due: due.drop_timers_until(NOW + 1.0)],
        "schedule_sweep": [lambda due: due.schedule_sweep(0.0), lambda due: due.schedule_sweep(NOW)],
        "sweep_no_later_than": [lambda due: due.sweep_no_later_than(0.0), lambda due: due.sweep_no_later_than(NOW)],
    },
}


def new_parts(kind: type) -> list[Part]:
    """Return new parts of this class, one for each way in which a work queue makes them."""
    if not issubclass(kind, WaitingRows):
        return [kind()]
    groups = [None, cast("GroupPasses", object())]
    return [kind(passes, has_call=False, has_prepare=False) for passes in groups]


def copy_part(part: Part) -> Part:
    """Return a part in the same state, which the methods of the other part do not change."""
    made = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, dict | list):
            setattr(made, name, value.copy())
        elif isinstance(value, Breaker):
            setattr(made, name, copy.deepcopy(value))
    return made


def reachable_states(kind: type, actions: Mapping[str, list[Action]]) -> set[State]:
    """Return all states that calls of the public methods reach, in any order: breadth first, until no call leads to a new state."""
    table = next(table for base, table in TABLES.items() if issubclass(kind, base))
    seen: set[State] = set()
    waiting = deque(new_parts(kind))
    while waiting:
        part = waiting.popleft()
        if (state := table.state_of(part)) in seen:
            continue
        seen.add(state)
        for calls in actions.values():
            for call in calls:
                after = copy_part(part)
                call(after)
                if table.state_of(after) not in seen:
                    waiting.append(after)
    return seen


@pytest.fixture
def few_fresh_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_rows, "FRESH_MAX", len(MANY) - 1)


# ---- the states ------------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("few_fresh_keys")
@pytest.mark.parametrize("kind", list(TABLES))
def test_exactly_the_states_of_the_table_are_reached(kind: type) -> None:
    reached, legal = reachable_states(kind, ACTIONS[kind]), set(TABLES[kind].legal_states())
    assert reached - legal == set(), "states that no row allows"
    assert legal - reached == set(), "states of a row that no method leads to"


@pytest.mark.parametrize("kind", list(TABLES))
def test_no_public_method_is_left_out_of_the_walk(kind: type) -> None:
    methods = {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
    assert methods == set(ACTIONS[kind])


@pytest.mark.parametrize("kind", list(TABLES))
def test_each_row_allows_states_of_its_own(kind: type) -> None:
    for group in TABLES[kind].groups:
        expanded = [group.expand_row(cells) for cells in group.rows]
        assert sum(map(len, expanded)) == len(group.legal), "two rows allow the same state"
        assert all(words in flag.words for state in group.legal for flag, words in zip(group.flags, state, strict=True))


class RejoinsNever(WaitingRows):
    """A part that leaves its backlog to others from the beginning, and never rejoins: many states are not reached."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.leave_backlog_to_others()

    def rejoin_backlog(self) -> None:
        pass


class KeepsTheLack(Postponement):
    """A part that forgets a text, and keeps the flag that belongs to the text."""

    def end_lack(self) -> None:
        self._lacks = None


class KeepsTheCursor(DueWork):
    """A part that keeps the cursor of a query that is over."""

    def note_no_more_attempts(self) -> None:
        self._has_due_attempts = self._seen_full = False


@pytest.mark.parametrize(
    ("kind", "outside", "unreached"),
    [(RejoinsNever, False, True), (KeepsTheLack, True, False), (KeepsTheCursor, True, False)],
)
def test_the_walk_finds_a_method_that_breaks_the_table(kind: type, outside: bool, unreached: bool) -> None:
    base = kind.__mro__[1]
    reached, legal = reachable_states(kind, ACTIONS[base]), set(TABLES[base].legal_states())
    assert (bool(reached - legal), bool(legal - reached)) == (outside, unreached)


def test_the_docs_show_the_same_tables() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    shown = [group.as_markdown() for table in TABLES.values() for group in table.groups]
    assert [one for one in shown if text.count(one) != 1] == []


# ---- the only writer of a field ----------------------------------------------------------------------------------------------------
def fields_of(kind: type) -> set[str]:
    return {name for part in new_parts(kind) for name in vars(part)}


PRIVATE = {name for kind in TABLES for name in fields_of(kind)} | {"_first_at"}


def writes_from_outside(source: str) -> Iterator[str]:
    """Yield each place in this source that sets, deletes or reads a field of a part, or sets anything of a part, from outside its class."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            is_part = isinstance(node.value, ast.Attribute) and node.value.attr in PARTS
            if node.attr in PRIVATE or (not isinstance(node.ctx, ast.Load) and (is_part or node.attr in PARTS)):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"setattr", "delattr", "vars"}:
            named = {one.attr for argument in node.args for one in ast.walk(argument) if isinstance(one, ast.Attribute)}
            if named & PARTS.keys():
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & {kind.__name__ for kind in PARTS.values()}:
            yield f"{node.lineno}: class {node.name}, which inherits from a part"


def test_no_module_writes_a_field_of_a_part_from_outside() -> None:
    found = {str(path.relative_to(ROOT)): list(writes_from_outside(path.read_text())) for path in (ROOT / "src").rglob("*.py")}
    assert len(found) > 200, "the search looks in the wrong place"
    assert {path: places for path, places in found.items() if places} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "queue.rows._newest = True",
        "rows = queue.rows\nrows._fresh.clear()",
        "queue.rows.fresh = {}",
        "queue.postponement.trouble += 1",
        "queue.postponement.not_before: float = 0.0",
        "queue.due_work.timers, other = [], 1",
        "for queue.due_work.cursor in places: pass",
        "del queue.rows.cursor",
        "queue.rows = other.rows",
        "queue._first_at = 3",
        "setattr(queue.rows, '_newest', True)",
        "vars(queue.postponement).update(_trouble=0)",
        "class Mine(WaitingRows): pass",
    ],
)
def test_a_write_from_outside_is_found(statement: str) -> None:
    assert list(writes_from_outside(statement))


@pytest.mark.parametrize("kind", list(TABLES))
def test_what_others_read_cannot_be_set(kind: type) -> None:
    assert all(name.startswith("_") for name in fields_of(kind))
    properties = [value for value in vars(kind).values() if isinstance(value, property)]
    assert properties
    assert all(one.fset is None and one.fdel is None for one in properties)


def test_the_parts_of_a_queue_are_set_once() -> None:
    tree = ast.parse((ROOT / "src" / "groundstate" / "engine" / "watch" / "work_queue.py").read_text())
    (queue,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == WorkQueue.__name__]
    setting = {
        method.name: {one.attr for one in ast.walk(method) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)}
        for method in queue.body
        if isinstance(method, ast.FunctionDef)
    }
    assert setting.pop("__init__") == {"query", "late", "_first_at", *PARTS}
    assert {name: fields for name, fields in setting.items() if fields} == {"note_first": {"_first_at"}}
