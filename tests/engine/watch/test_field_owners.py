"""Each field of a worker's state is written by the class that has it: no other code of the package assigns or changes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import groundstate
from groundstate.engine.call import call_turn, dispatch
from groundstate.engine.recover import startup

# Each class, and the name by which other code reaches its object. A leading underscore does not count.
OWNERS = {
    "WorkerState": "worker_state",
    "Progress": "progress",
    "BatchLocks": "batch_locks",
    "QueueRotation": "rotation",
    "Tally": "tally",
    "HandlerLocks": "handler_locks",
    "TroublePause": "trouble",
    "IdleWait": "idle_wait",
    "WorkerComponents": "components",
}
CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "subtract", "update"}
PACKAGE = Path(groundstate.__file__).parent
SOURCES = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def fields_by_class(source: str) -> dict[str, set[str]]:
    """Return the fields of each class: those with an annotation in its body, and those that its methods assign to `self`."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            named = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
            own = {
                one.attr
                for one in ast.walk(node)
                if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and last_name(one.value) == "self"
            }
            found.setdefault(node.name, set()).update(named | own)
    return found


def last_name(node: ast.expr) -> str:
    """Return the last name of an expression: `tally` for `tally` and for `self._worker_state.tally`; empty for other expressions."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lstrip("_")
        case _:
            return ""


def names_of_owned(tree: ast.AST) -> set[str]:
    """Return the names by which a module reaches objects of the classes: the usual ones, and arguments with such a class as their type."""
    typed = {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg) and one.annotation and last_name(one.annotation) in OWNERS}
    return {*OWNERS.values(), *(name.lstrip("_") for name in typed)}


def written_fields(tree: ast.AST) -> Iterator[ast.Attribute | ast.Call]:
    """Yield each field that is assigned, deleted, or changed in place, and each call that sets a field by its name."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                yield node
            case ast.Subscript(ctx=ast.Store() | ast.Del(), value=ast.Attribute() as changed):
                yield changed
            case ast.Call(func=ast.Attribute(attr=name, value=ast.Attribute() as changed)) if name in CHANGES:
                yield changed
            case ast.Call(func=ast.Name(id="setattr" | "delattr")):
                yield node


def written_from_outside(source: str, distinct: frozenset[str] = frozenset()) -> list[str]:
    """Return where a module writes a field of an object of OWNERS other than through `self`.

    distinct: names that only fields of these classes have, so that the name tells the field whatever the object is called.
    """
    tree = ast.parse(source)
    names = names_of_owned(tree)
    found = []
    for node in written_fields(tree):
        holder = node.value if isinstance(node, ast.Attribute) else node.args[0]
        is_named = last_name(holder) in names
        is_distinct = isinstance(node, ast.Attribute) and node.attr in distinct and last_name(holder) != "self"
        if is_named or is_distinct:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def distinct_fields() -> frozenset[str]:
    """Return the names of fields that the classes of OWNERS have and no other class of the package."""
    others = {
        field
        for path, source in SOURCES.items()
        for name, fields in fields_by_class(source).items()
        if not is_owner(path, name)
        for field in fields
    }
    return frozenset(field for fields in owned_fields().values() for field in fields if field not in others)


def owned_fields() -> dict[str, set[str]]:
    """Return the fields of each class of OWNERS."""
    classes = [(path, *found) for path, source in SOURCES.items() for found in fields_by_class(source).items()]
    return {name: fields for path, name, fields in classes if is_owner(path, name)}


def is_owner(path: Path, name: str) -> bool:
    """Return whether a class is one of OWNERS; the demo has other classes of the same names."""
    return name in OWNERS and path.is_relative_to(PACKAGE / "engine")


def test_no_code_writes_a_field_of_a_workers_state_but_the_class_that_has_it() -> None:
    distinct = distinct_fields()
    found = {path.name: lines for path, source in SOURCES.items() if (lines := written_from_outside(source, distinct))}
    assert not found


def test_each_class_that_is_checked_is_there_and_has_fields() -> None:
    assert owned_fields().keys() == OWNERS.keys()
    assert all(owned_fields().values())
    assert {"stopping", "done_since_sweep", "errors_in_a_row"} <= distinct_fields()


@pytest.mark.parametrize(
    "line",
    [
        "self._worker_state.stopping = 1.0",
        "worker_state.left_begun, before = True, False",
        "worker_state.progress.done_since_sweep += 1",
        "self._worker_state.tally.done[name] += 1",
        "worker_state.tally.expired.update(found)",
        "self.components.worker_state.queues.append(queue)",
        "del worker_state.alone",
        "for worker_state.next_due in times: pass",
        "setattr(worker_state, 'next_due', 0.0)",
        "def begin(state: WorkerState) -> None: state.store = ''",
        "other = worker_state; other.stopping = 0.0",
    ],
)
def test_a_field_written_from_outside_is_found(line: str) -> None:
    assert written_from_outside(line, distinct_fields())


@pytest.mark.parametrize(
    ("module", "reads", "writes"),
    [
        (startup, "worker_state.note_begun_attempts_left(left=True)", "worker_state.left_begun = True"),
        (dispatch, "self._worker_state.progress.count_done(", "self._worker_state.progress.done_since_sweep += ("),
        (call_turn, "self._worker_state.tally.count_expired(begun.expired)", "self._worker_state.tally.expired.update(begun.expired)"),
    ],
)
def test_a_module_that_writes_a_field_itself_is_found(module: object, reads: str, writes: str) -> None:
    source = Path(str(vars(module)["__file__"])).read_text()
    assert reads in source
    assert not written_from_outside(source)
    assert len(written_from_outside(source.replace(reads, writes))) == 1


@pytest.mark.parametrize("line", ["self.stopping = 1.0", "worker_state.incarnation.sound = False", "worker_state.note_waits_shortened()"])
def test_what_is_no_write_of_a_field_is_not_found(line: str) -> None:
    assert not written_from_outside(line, distinct_fields())
