"""Finds out whether a handler writes an attribute of its record, as far as its source or byte code shows. Runs no user code.

What cannot be followed counts as 'does not write': then the declaration is refused, and its author says explicitly what is meant.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

FOLLOWED_MOST = 8  # functions that one search reads, the handler included


def writes(handler: Callable[..., Any], attribute: str, record: type) -> bool:
    """Whether the handler sets this attribute of its first argument.

    The handler may set it itself, or pass its record to a function, method or property setter that sets it.
    `update(...).values(attribute=...)` counts as well.

    Without source code, as in an app that is shipped as byte code, an attribute of this name on any object counts. So a declaration that is
    accepted with source code is accepted without it too.
    """
    return _Search(attribute, record).found_in(handler, 0)


@dataclass
class _Search:
    """A search for code that sets one attribute. It remembers the functions that it has read."""

    attribute: str
    record: type
    _seen: set[tuple[CodeType, int]] = field(default_factory=set)

    def found_in(self, function: Any, place: int) -> bool:
        """Whether the function sets the attribute on its argument at this position."""
        function, place = _unwrap_callable(function, place)
        code = getattr(function, "__code__", None)
        if code is None or (code, place) in self._seen or len(self._seen) >= FOLLOWED_MOST:
            return False
        self._seen.add((code, place))
        written = _definition(function)
        if written is None:
            return self._found_in_code(code, function)
        taken = [*written.args.posonlyargs, *written.args.args]
        if place >= len(taken):  # such as a decorator's `def wrapper(*given)` that lacks functools.wraps
            return written.args.vararg is not None and any(self.found_in(one, place) for one in _in_cells(function))
        names = _aliases(written, taken[place].arg)
        return any(self._found_at(one, names, function) for one in ast.walk(written))

    def _found_at(self, one: ast.AST, names: set[str], function: FunctionType) -> bool:
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store | ast.Del) and _is_one_of(one.value, names):
            return one.attr == self.attribute or self._sets_by_property(one.attr)
        if not isinstance(one, ast.Call):
            return False
        called = one.func.attr if isinstance(one.func, ast.Attribute) else one.func.id if isinstance(one.func, ast.Name) else ""
        if called == "values" and any(given.arg == self.attribute for given in one.keywords):
            return True
        if called == "setattr" and one.args and _is_one_of(one.args[0], names):
            return len(one.args) > 1 and isinstance(one.args[1], ast.Constant) and one.args[1].value == self.attribute
        if isinstance(one.func, ast.Attribute) and _is_one_of(one.func.value, names):
            return self.found_in(inspect.getattr_static(self.record, called, None), 0)
        given_at = [number for number, given in enumerate(one.args) if _is_one_of(given, names)]
        if not given_at:
            return False
        callee = _resolved(one.func, function)
        worker_state = 1 if inspect.ismethod(callee) else 0
        return any(self.found_in(callee, number + worker_state) for number in given_at)

    def _sets_by_property(self, name: str) -> bool:
        """Whether the setter of a property, or hybrid property, of this name sets the attribute."""
        setter = getattr(inspect.getattr_static(self.record, name, None), "fset", None)
        return setter is not None and self.found_in(setter, 0)

    def _found_in_code(self, code: CodeType, function: FunctionType) -> bool:
        if any(self.found_in(one, 0) for one in _in_cells(function)):
            return True
        for one in _codes(code):
            if any(step.opname == "STORE_ATTR" and step.argval == self.attribute for step in dis.get_instructions(one)):
                return True
            if {"setattr", "values"} & set(one.co_names) and self.attribute in _constants(one):
                return True
            for name in one.co_names:
                found = function.__globals__.get(name, inspect.getattr_static(self.record, name, None))
                setter = getattr(found, "fset", None)
                if any(isinstance(each, FunctionType) and self.found_in(each, 0) for each in (found, setter)):
                    return True
        return False


def _unwrap_callable(function: Any, place: int) -> tuple[Any, int]:
    """Unwrap partials, methods and wrappers. Return the function that runs in the end, and the argument's position in it."""
    while True:
        if isinstance(function, functools.partial):
            function, place = function.func, place + len(function.args)
        elif isinstance(function, staticmethod | classmethod):
            function, place = function.__func__, place + isinstance(function, classmethod)
        elif inspect.ismethod(function):
            function, place = function.__func__, place + 1
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not hasattr(function, "__code__") and isinstance(
            own := inspect.getattr_static(type(function), "__call__", None), FunctionType
        ):
            function, place = own, place + 1  # `function` is an object with a `__call__` method
        else:
            return function, place


def _definition(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Return the function's syntax tree. Returns None without source, or if it is no whole statement, as for a lambda within a call."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _aliases(function: ast.AST, name: str) -> set[str]:
    """Return the local names of the same object: after `one = order` these are `one` and `order`."""
    names = {name}
    for _ in range(3):
        for one in ast.walk(function):
            if isinstance(one, ast.Assign) and _is_one_of(one.value, names):
                names.update(target.id for target in one.targets if isinstance(target, ast.Name))
    return names


def _is_one_of(one: ast.expr, names: set[str]) -> bool:
    return isinstance(one, ast.Name) and one.id in names


def _resolved(called: ast.expr, function: FunctionType) -> Any:
    """Return the function that is called by this expression, or None if it is not known yet."""
    if isinstance(called, ast.Attribute):
        owner = _resolved(called.value, function)
        return (
            None
            if owner is None
            else getattr(owner, called.attr, None)
            if inspect.ismodule(owner)
            else _get_attribute_statically(owner, called.attr)
        )
    if not isinstance(called, ast.Name):
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    try:
        return cells[called.id].cell_contents if called.id in cells else function.__globals__.get(called.id)
    except ValueError:  # raised if the closure's cell is still empty
        return None


def _get_attribute_statically(owner: Any, name: str) -> Any:
    """Return an attribute of a class or an object without running a property. A method of an object is returned bound."""
    found = inspect.getattr_static(owner, name, None)
    return found.__get__(owner) if isinstance(found, FunctionType) and not inspect.isclass(owner) else found


def _in_cells(function: FunctionType) -> Iterator[FunctionType]:
    """Yield the functions in the function's closure, such as the one that a decorator's wrapper calls."""
    for cell in function.__closure__ or ():
        try:
            found = cell.cell_contents
        except ValueError:  # raised if the closure's cell is still empty
            continue
        if isinstance(found, FunctionType):
            yield found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _constants(code: CodeType) -> set[object]:
    """Return the strings among the code's constants, also those in tuples: the names of keyword arguments are kept in a tuple."""
    found: set[object] = set()
    for one in code.co_consts:
        found.update(one if isinstance(one, tuple) else (one,) if isinstance(one, str) else ())
    return found
