"""The source of a declaration, as far as it can be read: where Python's `and`, `is` and `not` stand in SQL's place. Silent without source.

Also: which frame declared, for warnings and messages that point there.
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
    """The frame that called into groundstate."""
    frame = inspect.currentframe()
    while frame is not None and _ours(frame):
        frame = frame.f_back
    return frame


def stacklevel() -> int:
    """What `warnings.warn`, called by who asks, is to be given so that it points at the declaration."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _ours(frame):
        frame, level = frame.f_back, level + 1
    return level


def place() -> str:
    """Where it is declared: file and line."""
    frame = declarer()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def place_of(function: Callable[..., Any]) -> tuple[str, int]:
    """The file and line of a function, as far as it has them."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ("<unknown>", 1) if code is None else (code.co_filename, code.co_firstlineno)


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE


def misread_clause() -> str | None:
    """What in the clauses of the call that is being made is carried out by Python instead of SQL, with the cure."""
    call = _call_in_hand()
    if call is None:
        return None
    for given in call.args[1:]:
        for clause in _clauses(given):
            why = _python_in(clause)
            if why is not None:
                return f"`{ast.unparse(clause)}`: {why}"
    return None


def _call_in_hand() -> ast.Call | None:
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
    """Where Python was told to forget columns (PYTHONNODEBUGRANGES): the call that begins in this line and holds all others that do."""
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
    """The expressions that stand where SQL takes a condition."""
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


def _python_in(clause: ast.expr) -> str | None:
    if isinstance(clause, ast.BoolOp):
        word, sign = ("and", "&") if isinstance(clause.op, ast.And) else ("or", "|")
        return f"Python's `{word}` drops one of its sides; separate clauses by commas, or join them by {sign} in parentheses"
    if isinstance(clause, ast.UnaryOp) and isinstance(clause.op, ast.Not):
        return "Python's `not` makes a constant of it at import; write ~(...)"
    if isinstance(clause, ast.Compare):
        return _python_compares(clause)
    return None


def _python_compares(clause: ast.Compare) -> str | None:
    if len(clause.ops) > 1:
        return "Python keeps the last comparison of such a chain alone; write two clauses, or .between(...)"
    cure = {ast.Is: ".is_(...)", ast.IsNot: ".is_not(...)", ast.In: ".in_([...])", ast.NotIn: ".not_in([...])"}.get(type(clause.ops[0]))
    if cure is not None:
        return f"Python compares the column itself, at import, and the result is a constant; write {cure}"
    for one in ast.walk(clause):
        if isinstance(one, ast.Call) and _called(one) in _CLOCKS and not _of_sql(one):
            return (
                "the clock is read at import, and stays so for as long as the worker runs; say it by due=after(Order.placed_at,"
                " timedelta(...)), or compare with the database's clock, as in Order.placed_at < func.now()"
            )
    return None


def _of_sql(call: ast.Call) -> bool:
    """Whether it is `func.now()`, by whatever name `func` was imported."""
    return (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, (ast.Name, ast.Attribute)) and _last(call.func.value) == "func"
    )


def _last(name: ast.Name | ast.Attribute) -> str:
    return name.id if isinstance(name, ast.Name) else name.attr


# ---- handlers ------------------------------------------------------------------------------------------------------------------
def changed_in_place(handler: Callable[..., Any]) -> set[str]:
    """The attributes of its first argument whose inside the handler changes: `record.notes["mail"] = m`, `record.tags.append(t)`."""
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
    """Attributes that it also sets as a whole, or flags as modified by name."""
    found: set[str] = set()
    for one in ast.walk(function):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and isinstance(one.value, ast.Name) and one.value.id == record:
            found.add(one.attr)
        if isinstance(one, ast.Call) and _called(one) == "flag_modified":
            found.update(str(given.value) for given in one.args if isinstance(given, ast.Constant))
    return found
