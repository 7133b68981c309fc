"""Which constants a handler sets on its record, as far as its source tells. Reads source; runs nothing, and is silent without it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


def constants_set(handler: Callable[..., Any]) -> dict[str, set[Any]]:
    """Attribute -> the constants that `record.attribute = constant` sets, also in `record.a, record.b = "x", y`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(handler)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    function = next((one for one in tree.body if isinstance(one, ast.FunctionDef)), None)
    taken = [*function.args.posonlyargs, *function.args.args] if function else []
    found: dict[str, set[Any]] = {}
    for name, value in _pairs(function, taken[0].arg) if function and taken else ():
        found.setdefault(name, set()).add(value)
    return found


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
