"""Whether a handler writes an attribute of its record, as far as its code tells. Reads source and code objects; runs nothing.

What cannot be followed is taken as 'does not write': who asks refuses then, and the author says in words what is meant.
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

FOLLOWED_MOST = 8  # functions that are called within functions


def writes(handler: Callable[..., Any], attribute: str, record: type) -> bool:
    """Whether the handler sets this attribute of its first argument: by itself, or by a function, a method or a property's setter that
    it hands its record to. A mapped column's `update(...).values(attribute=...)` counts as well.

    Without source, as in an app that is shipped as byte code, any object's attribute of that name counts, so that a declaration which is
    accepted where its source can be read is accepted everywhere.
    """
    return _Search(attribute, record).found_in(handler, 0)


@dataclass
class _Search:
    """One question, with the functions that were looked at for it."""

    attribute: str
    record: type
    _seen: set[tuple[CodeType, int]] = field(default_factory=set)

    def found_in(self, function: Any, place: int) -> bool:
        """Whether the function writes it to its argument at this place."""
        function, place = _plain(function, place)
        code = getattr(function, "__code__", None)
        if code is None or (code, place) in self._seen or len(self._seen) >= FOLLOWED_MOST:
            return False
        self._seen.add((code, place))
        written = _definition(function)
        if written is None:
            return self._found_in_code(code, function)
        taken = [*written.args.posonlyargs, *written.args.args]
        if place >= len(taken):  # a decorator's `def wrapper(*given)`, which does not say what it wraps
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
        shift = 1 if inspect.ismethod(callee) else 0
        return any(self.found_in(callee, number + shift) for number in given_at)

    def _sets_by_property(self, name: str) -> bool:
        """Whether a property, or a hybrid property, of this name sets it."""
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


def _plain(function: Any, place: int) -> tuple[Any, int]:
    """The function that is run in the end, and the place of the argument there."""
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
            function, place = own, place + 1  # an object that can be called
        else:
            return function, place


def _definition(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """None where there is no source, or it is no whole statement, as of a lambda within a call."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _aliases(function: ast.AST, name: str) -> set[str]:
    """The names by which a local is known: `one = order`."""
    names = {name}
    for _ in range(3):
        for one in ast.walk(function):
            if isinstance(one, ast.Assign) and _is_one_of(one.value, names):
                names.update(target.id for target in one.targets if isinstance(target, ast.Name))
    return names


def _is_one_of(one: ast.expr, names: set[str]) -> bool:
    return isinstance(one, ast.Name) and one.id in names


def _resolved(called: ast.expr, function: FunctionType) -> Any:
    """The function that is called by this name, as far as it is known already."""
    if isinstance(called, ast.Attribute):
        owner = _resolved(called.value, function)
        return None if owner is None else getattr(owner, called.attr, None) if inspect.ismodule(owner) else _static(owner, called.attr)
    if not isinstance(called, ast.Name):
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    try:
        return cells[called.id].cell_contents if called.id in cells else function.__globals__.get(called.id)
    except ValueError:  # the cell is empty so far
        return None


def _static(owner: Any, name: str) -> Any:
    """An attribute of a class or an object, bound where it is a method of an object; no property is run."""
    found = inspect.getattr_static(owner, name, None)
    return found.__get__(owner) if isinstance(found, FunctionType) and not inspect.isclass(owner) else found


def _in_cells(function: FunctionType) -> Iterator[FunctionType]:
    """The functions that it takes from the function around it, as a decorator's wrapper does."""
    for cell in function.__closure__ or ():
        try:
            found = cell.cell_contents
        except ValueError:  # empty so far
            continue
        if isinstance(found, FunctionType):
            yield found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _constants(code: CodeType) -> set[object]:
    """Its texts, and those in tuples: the names of keyword arguments are one."""
    found: set[object] = set()
    for one in code.co_consts:
        found.update(one if isinstance(one, tuple) else (one,) if isinstance(one, str) else ())
    return found
