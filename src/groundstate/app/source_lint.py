"""Reads the source code of a declaration, to find Python's `and`, `is` and `not` where an SQL condition is meant.

Also finds the frame of the declaration, for warnings and messages that point there. Without source code it finds nothing.
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


def declarer() -> FrameType | None:
    """Return the frame of the user's code that called into groundstate."""
    frame = inspect.currentframe()
    while frame is not None and _is_groundstate_frame(frame):
        frame = frame.f_back
    return frame


def stacklevel() -> int:
    """Return the `stacklevel` with which the caller's `warnings.warn` points at the declaration in the user's code."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _is_groundstate_frame(frame):
        frame, level = frame.f_back, level + 1
    return level


def declaration_file_and_line() -> str:
    """Return the file and line of the declaration that is running, as 'file:line'."""
    frame = declarer()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """Return the file and line where a function is defined, or ('<unknown>', 1) if it has no code object."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ("<unknown>", 1) if code is None else (code.co_filename, code.co_firstlineno)


def _is_groundstate_frame(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE


def misread_clause() -> str | None:
    """Return an error text for a clause of the running declaration that Python evaluates instead of SQL. Returns None if there is none."""
    return _misread(_call_being_executed(), 1, now=False)


_MOST = 1000  # calls of `wait_for` in the code, of which the answer is kept
_read: dict[tuple[Any, int], str | None] = {}  # by the code and the place in it


def misread_clause_now() -> str | None:
    """Return the same of a running `wait_for`, whose clauses come after the key and may have the present time in them.

    A web request makes the same call again and again, so the source is read once for each call in the code.
    """
    frame = declarer()
    if frame is None:
        return None
    place = (frame.f_code, frame.f_lasti)
    if place not in _read:
        if len(_read) >= _MOST:
            _read.clear()
        _read[place] = _misread(_call_being_executed(), 2, now=True)
    return _read.get(place)


def _misread(call: ast.Call | None, first: int, *, now: bool) -> str | None:
    """first: the place of the first clause among the arguments."""
    for given in call.args[first:] if call is not None else ():
        for clause in _clauses(given):
            why = _python_in(clause, now=now)
            if why is not None:
                return f"`{ast.unparse(clause)}`: {why}"
    return None


def _call_being_executed() -> ast.Call | None:
    frame = declarer()
    if frame is None:
        return None
    linecache.checkcache(frame.f_code.co_filename)
    calls = _calls("".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals)))
    at = inspect.getframeinfo(frame, context=0).positions
    if at is None or at.lineno is None or at.end_lineno is None or at.col_offset is None or at.end_col_offset is None:
        return _on_line(calls, frame.f_lineno)
    return calls.get((at.lineno, at.col_offset, at.end_lineno, at.end_col_offset))


def _on_line(calls: dict[_Place, ast.Call], line: int) -> ast.Call | None:
    """Return the outermost call that begins in this line. Used if Python keeps no column numbers (PYTHONNODEBUGRANGES)."""
    begin = {place: one for place, one in calls.items() if place[0] == line and not isinstance(one.func, ast.Call)}
    return begin[max(begin, key=lambda place: (place[2], place[3]))] if begin else None


@functools.lru_cache(maxsize=16)
def _calls(text: str) -> dict[_Place, ast.Call]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    found = [one for one in ast.walk(tree) if isinstance(one, ast.Call)]
    return {(one.lineno, one.col_offset, one.end_lineno or 0, one.end_col_offset or 0): one for one in found}


def _clauses(given: ast.expr) -> Iterator[ast.expr]:
    """Yield every expression that is in the place of an SQL condition."""
    yield given
    if isinstance(given, ast.BinOp) and isinstance(given.op, (ast.BitAnd, ast.BitOr)):
        yield from _clauses(given.left)
        yield from _clauses(given.right)
    elif isinstance(given, ast.UnaryOp) and isinstance(given.op, ast.Invert):
        yield from _clauses(given.operand)
    elif isinstance(given, ast.Call) and _called(given) in _JOINS:
        for inner in given.args:
            yield from _clauses(inner)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def _python_in(clause: ast.expr, *, now: bool) -> str | None:
    if isinstance(clause, ast.BoolOp):
        word, sign = ("and", "&") if isinstance(clause.op, ast.And) else ("or", "|")
        return f"Python's `{word}` drops one of its sides; separate clauses by commas, or join them by {sign} in parentheses"
    if isinstance(clause, ast.UnaryOp) and isinstance(clause.op, ast.Not):
        return "Python's `not` makes a constant of it; write ~(...)"
    if isinstance(clause, ast.Compare):
        return _python_compares(clause, now=now)
    return None


def _python_compares(clause: ast.Compare, *, now: bool) -> str | None:
    if len(clause.ops) > 1:
        return "Python keeps the last comparison of such a chain alone; write two clauses, or .between(...)"
    cure = {ast.Is: ".is_(...)", ast.IsNot: ".is_not(...)", ast.In: ".in_([...])", ast.NotIn: ".not_in([...])"}.get(type(clause.ops[0]))
    if cure is not None:
        return f"Python compares the column itself, and the result is a constant; write {cure}"
    for one in () if now else ast.walk(clause):
        if isinstance(one, ast.Call) and _called(one) in _CLOCKS and not _of_sql(one):
            return (
                "the clock is read at import, and stays so for as long as the worker runs; say it by due=after(Order.placed_at,"
                " timedelta(...)), or compare with the database's clock, as in Order.placed_at < func.now()"
            )
    return None


def _of_sql(call: ast.Call) -> bool:
    """Whether the call is SQLAlchemy's `func.now()`, with or without a module in front, as in `sqlalchemy.func.now()`."""
    return (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, (ast.Name, ast.Attribute)) and _last(call.func.value) == "func"
    )


def _last(name: ast.Name | ast.Attribute) -> str:
    return name.id if isinstance(name, ast.Name) else name.attr


# ---- handlers ------------------------------------------------------------------------------------------------------------------
def changed_in_place(handler: Callable[..., Any]) -> set[str]:
    """Return the attributes of the record that the handler changes in place: `record.notes["mail"] = m`, `record.tags.append(t)`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return set()
    function = tree.body[0] if tree.body else None
    if not isinstance(function, ast.FunctionDef):
        return set()
    taken = [*function.args.posonlyargs, *function.args.args]
    record = taken[0].arg if taken else ""
    return {name for one in ast.walk(function) if (name := _changed(one, record)) is not None} - _assigned(function, record)


def _changed(one: ast.AST, record: str) -> str | None:
    if isinstance(one, ast.Subscript) and isinstance(one.ctx, (ast.Store, ast.Del)):
        return _attribute(one.value, record)
    if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in _CHANGES:
        return _attribute(one.func.value, record)
    return None


def _attribute(one: ast.expr, record: str) -> str | None:
    while isinstance(one, ast.Subscript):
        one = one.value
    if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == record:
        return one.attr
    return None


def _assigned(function: ast.FunctionDef, record: str) -> set[str]:
    """Return the attributes of the record that the function assigns as a whole, or names in `flag_modified`."""
    found: set[str] = set()
    for one in ast.walk(function):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and isinstance(one.value, ast.Name) and one.value.id == record:
            found.add(one.attr)
        if isinstance(one, ast.Call) and _called(one) == "flag_modified":
            found.update(str(given.value) for given in one.args if isinstance(given, ast.Constant))
    return found
