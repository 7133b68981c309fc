"""What a handler's source tells: constants that it sets, rows beside its record that it counts on. Runs nothing; silent without source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


def constants_set(handler: Callable[..., Any]) -> dict[str, set[Any]]:
    """Attribute -> the constants that `record.attribute = constant` sets, also in `record.a, record.b = "x", y`."""
    function, record = _read(handler)
    found: dict[str, set[Any]] = {}
    for name, value in _pairs(function, record) if function and record else ():
        found.setdefault(name, set()).add(value)
    return found


def counted_beside(handler: Callable[..., Any], session: str | None) -> str | None:
    """The first `other.attribute += ...` in it, where other came from its record or its session: it reads that row, and writes it back.

    session: the name under which it takes the session.
    """
    function, record = _read(handler)
    rows: set[str] = set()
    for one in ast.walk(function) if function else ():
        match one:
            case ast.Assign(targets=[ast.Name(name)], value=source) | ast.For(target=ast.Name(name), iter=source):
                if {record, session} & {part.id for part in ast.walk(source) if isinstance(part, ast.Name)}:
                    rows.add(name)
    for one in ast.walk(function) if function else ():
        match one:
            case ast.AugAssign(target=ast.Attribute(value=ast.Name(name)) as target) if name in rows:
                return ast.unparse(target)
    return None


def _read(handler: Callable[..., Any]) -> tuple[ast.FunctionDef | None, str]:
    """Its source, and the name under which it takes its record."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None, ""
    function = next((one for one in tree.body if isinstance(one, ast.FunctionDef)), None)
    taken = [*function.args.posonlyargs, *function.args.args] if function else []
    return function, taken[0].arg if taken else ""


def _pairs(function: ast.FunctionDef, record: str) -> Iterator[tuple[str, Any]]:
    for one in ast.walk(function):
        if not isinstance(one, ast.Assign):
            continue
        for target in one.targets:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            values = one.value.elts if isinstance(target, ast.Tuple) and isinstance(one.value, ast.Tuple) else [one.value]
            if len(targets) != len(values):
                continue
            for to, value in zip(targets, values, strict=True):
                name = _attribute(to, record)
                if name is not None and isinstance(value, ast.Constant) and isinstance(value.value, str | int | bool):
                    yield name, value.value


def _attribute(target: ast.expr, record: str) -> str | None:
    """The name, where the target is an attribute of the record."""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == record:
        return target.attr
    return None
