"""Reads the source code of a declaration, to find Python's `and`, `is` and `not` where an SQL condition is meant.

It also finds the file and line of the declaration, for warnings and messages. If there is no source code, it finds nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_JOINS = {"and_", "or_", "not_", "every_child", "any", "has"}
_CLOCKS = {"now", "utcnow", "today"}
_CHANGES = {"append", "extend", "insert", "pop", "popitem", "remove", "clear", "update", "setdefault", "sort", "reverse"}
_Place = tuple[int, int, int, int]


def declaring_frame() -> FrameType | None:
    """Return the innermost frame that is outside of groundstate, which is a frame of the user's code. Returns None if there is none."""
    frame = inspect.currentframe()
    while frame is not None and _is_groundstate_frame(frame):
        frame = frame.f_back
    return frame


def stacklevel_of_declaration() -> int:
    """Return the `stacklevel` with which the caller's `warnings.warn` points at the declaration in the user's code."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _is_groundstate_frame(frame):
        frame, level = frame.f_back, level + 1
    return level


def declaration_file_and_line() -> str:
    """Return the file and line at which the user's code called groundstate, as 'file:line'. Return '' if no code of the user is running."""
    frame = declaring_frame()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def file_and_line_of(function: Callable[..., Any]) -> tuple[str, int]:
    """Return the file and line where a function is defined, or ('<unknown>', 1) if it has no code object."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ("<unknown>", 1) if code is None else (code.co_filename, code.co_firstlineno)


def _is_groundstate_frame(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE


def find_misread_clause() -> str | None:
    """Return an error text if Python, not SQL, evaluates a clause of the declaration that is being run, as in `a and b`. Otherwise return
    None.
    """
    return _find_misread_clause(_call_being_executed(), 1, now=False)


_MOST = 1000  # the largest number of cached results; there is one for each call of `wait_for` in the user's code
_read: dict[tuple[Any, int], str | None] = {}  # the cached results; a key is a code object and the offset of a call in its byte code


def find_misread_clause_of_wait_for() -> str | None:
    """Return an error text if Python, not SQL, evaluates a clause of the `wait_for` that is being called, as in `a and b`. Otherwise return
    None.

    Unlike in a declaration, a clause may contain the present time. Web requests run the same call again and again, so the result is cached
    for each call in the source code.
    """
    frame = declaring_frame()
    if frame is None:
        return None
    place = (frame.f_code, frame.f_lasti)
    if place not in _read:
        if len(_read) >= _MOST:
            _read.clear()
        _read[place] = _find_misread_clause(_call_being_executed(), 2, now=True)
    return _read.get(place)


def _find_misread_clause(call: ast.Call | None, first: int, *, now: bool) -> str | None:
    """Return an error text for a clause that Python, not SQL, evaluates, or None. first: the position of the first clause among the
    arguments.
    """
    for given in call.args[first:] if call is not None else ():
        for clause in _parts_in_place_of_conditions(given):
            why = _why_python_evaluates(clause, now=now)
            if why is not None:
                return f"`{ast.unparse(clause)}`: {why}"
    return None


def _call_being_executed() -> ast.Call | None:
    frame = declaring_frame()
    if frame is None:
        return None
    linecache.checkcache(frame.f_code.co_filename)
    calls = _calls_in_source("".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals)))
    at = inspect.getframeinfo(frame, context=0).positions
    if at is None or at.lineno is None or at.end_lineno is None or at.col_offset is None or at.end_col_offset is None:
        return _call_on_line(calls, frame.f_lineno)
    return calls.get((at.lineno, at.col_offset, at.end_lineno, at.end_col_offset))


def _call_on_line(calls: dict[_Place, ast.Call], line: int) -> ast.Call | None:
    """Return the outermost call that begins in this line, for a Python that keeps no column numbers (PYTHONNODEBUGRANGES)."""
    begin = {place: one for place, one in calls.items() if place[0] == line and not isinstance(one.func, ast.Call)}
    return begin[max(begin, key=lambda place: (place[2], place[3]))] if begin else None


@functools.lru_cache(maxsize=16)
def _calls_in_source(text: str) -> dict[_Place, ast.Call]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    found = [one for one in ast.walk(tree) if isinstance(one, ast.Call)]
    return {(one.lineno, one.col_offset, one.end_lineno or 0, one.end_col_offset or 0): one for one in found}


def _parts_in_place_of_conditions(given: ast.expr) -> Iterator[ast.expr]:
    """Yield the parts of an argument that must be SQL conditions: the argument itself, the operands of `&`, `|` and `~`, and the arguments
    of `and_` and similar functions.
    """
    yield given
    if isinstance(given, ast.BinOp) and isinstance(given.op, (ast.BitAnd, ast.BitOr)):
        yield from _parts_in_place_of_conditions(given.left)
        yield from _parts_in_place_of_conditions(given.right)
    elif isinstance(given, ast.UnaryOp) and isinstance(given.op, ast.Invert):
        yield from _parts_in_place_of_conditions(given.operand)
    elif isinstance(given, ast.Call) and _called_name(given) in _JOINS:
        for inner in given.args:
            yield from _parts_in_place_of_conditions(inner)


def _called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def _why_python_evaluates(clause: ast.expr, *, now: bool) -> str | None:
    if isinstance(clause, ast.BoolOp):
        word, sign = ("and", "&") if isinstance(clause.op, ast.And) else ("or", "|")
        return f"Python's `{word}` drops one of its sides; separate clauses by commas, or join them by {sign} in parentheses"
    if isinstance(clause, ast.UnaryOp) and isinstance(clause.op, ast.Not):
        return "Python's `not` makes a constant of it; write ~(...)"
    if isinstance(clause, ast.Compare):
        return _why_python_compares(clause, now=now)
    return None


def _why_python_compares(clause: ast.Compare, *, now: bool) -> str | None:
    if len(clause.ops) > 1:
        return "Python keeps only the last comparison of such a chain; write two clauses, or .between(...)"
    cure = {ast.Is: ".is_(...)", ast.IsNot: ".is_not(...)", ast.In: ".in_([...])", ast.NotIn: ".not_in([...])"}.get(type(clause.ops[0]))
    if cure is not None:
        return f"Python compares the column itself, and the result is a constant; write {cure}"
    for one in () if now else ast.walk(clause):
        if isinstance(one, ast.Call) and _called_name(one) in _CLOCKS and not _is_sql_func(one):
            return (
                "the clock is read at import, and this value is used for as long as the worker runs; write due=after(Order.placed_at,"
                " timedelta(...)), or compare with the database's clock, as in Order.placed_at < func.now()"
            )
    return None


def _is_sql_func(call: ast.Call) -> bool:
    """Whether the call makes an SQL function by SQLAlchemy's `func`, such as `func.now()` or `sqlalchemy.func.now()`."""
    return (
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, (ast.Name, ast.Attribute))
        and _last_name(call.func.value) == "func"
    )


def _last_name(name: ast.Name | ast.Attribute) -> str:
    return name.id if isinstance(name, ast.Name) else name.attr


# ---- handlers ------------------------------------------------------------------------------------------------------------------
def attributes_changed_in_place(handler: Callable[..., Any]) -> set[str]:
    """Return the record's attributes that the handler changes in place, as in `record.notes["mail"] = m` or `record.tags.append(t)`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return set()
    function = tree.body[0] if tree.body else None
    if not isinstance(function, ast.FunctionDef):
        return set()
    taken = [*function.args.posonlyargs, *function.args.args]
    record = taken[0].arg if taken else ""
    return {name for one in ast.walk(function) if (name := _attribute_changed_by(one, record)) is not None} - _attributes_assigned(
        function, record
    )


def _attribute_changed_by(one: ast.AST, record: str) -> str | None:
    if isinstance(one, ast.Subscript) and isinstance(one.ctx, (ast.Store, ast.Del)):
        return _attribute_of_record(one.value, record)
    if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in _CHANGES:
        return _attribute_of_record(one.func.value, record)
    return None


def _attribute_of_record(one: ast.expr, record: str) -> str | None:
    while isinstance(one, ast.Subscript):
        one = one.value
    if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == record:
        return one.attr
    return None


def _attributes_assigned(function: ast.FunctionDef, record: str) -> set[str]:
    """Return the attributes of the record that the function assigns, or that it names in `flag_modified`."""
    found: set[str] = set()
    for one in ast.walk(function):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and isinstance(one.value, ast.Name) and one.value.id == record:
            found.add(one.attr)
        if isinstance(one, ast.Call) and _called_name(one) == "flag_modified":
            found.update(str(given.value) for given in one.args if isinstance(given, ast.Constant))
    return found
