"""Finds out whether a handler writes an attribute of its record, as far as its source or byte code shows. Runs no user code.

If neither shows a write, groundstate assumes that the handler does not write the attribute. The declaration is then refused until its
author says what is meant.
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

FOLLOWED_MOST = 8  # the largest number of functions that one search reads, including the handler


def handler_writes_attribute(handler: Callable[..., Any], attribute: str, record: type) -> bool:
    """Whether the handler sets this attribute of its first argument.

    The attribute may be set in the handler itself, or in a function, method or property setter to which the handler passes its record.
    `update(...).values(attribute=...)` counts as well.

    If there is no source code, the byte code is searched. In this case it does not matter on which object an attribute of this name is set.
    So a declaration that is accepted with source code is also accepted without it.
    """
    return _AttributeSearch(attribute, record).function_sets_attribute(handler, 0)


@dataclass
class _AttributeSearch:
    """A search for code that sets one attribute of a record. It reads each function only once."""

    attribute: str
    record: type
    _seen: set[tuple[CodeType, int]] = field(default_factory=set)

    def function_sets_attribute(self, function: Any, place: int) -> bool:
        """Whether the function sets the attribute on the object that is passed to it at position `place`."""
        function, place = _unwrap_callable(function, place)
        code = getattr(function, "__code__", None)
        if code is None or (code, place) in self._seen or len(self._seen) >= FOLLOWED_MOST:
            return False
        self._seen.add((code, place))
        written = _parse_definition(function)
        if written is None:
            return self._byte_code_sets_attribute(code, function)
        taken = [*written.args.posonlyargs, *written.args.args]
        if place >= len(taken):  # the function takes the object by `*args`, like a decorator's wrapper without functools.wraps
            return written.args.vararg is not None and any(
                self.function_sets_attribute(one, place) for one in _functions_in_closure(function)
            )
        names = _local_aliases(written, taken[place].arg)
        return any(self._node_sets_attribute(one, names, function) for one in ast.walk(written))

    def _node_sets_attribute(self, one: ast.AST, names: set[str], function: FunctionType) -> bool:
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store | ast.Del) and _is_name_in(one.value, names):
            return one.attr == self.attribute or self._property_setter_sets_attribute(one.attr)
        if not isinstance(one, ast.Call):
            return False
        called = one.func.attr if isinstance(one.func, ast.Attribute) else one.func.id if isinstance(one.func, ast.Name) else ""
        if called == "values" and any(given.arg == self.attribute for given in one.keywords):
            return True
        if called == "setattr" and one.args and _is_name_in(one.args[0], names):
            return len(one.args) > 1 and isinstance(one.args[1], ast.Constant) and one.args[1].value == self.attribute
        if isinstance(one.func, ast.Attribute) and _is_name_in(one.func.value, names):
            return self.function_sets_attribute(inspect.getattr_static(self.record, called, None), 0)
        given_at = [number for number, given in enumerate(one.args) if _is_name_in(given, names)]
        if not given_at:
            return False
        callee = _resolve_callee(one.func, function)
        bound = 1 if inspect.ismethod(callee) else 0
        return any(self.function_sets_attribute(callee, number + bound) for number in given_at)

    def _property_setter_sets_attribute(self, name: str) -> bool:
        """Whether the record's class has a property, or hybrid property, named `name` whose setter sets the searched attribute."""
        setter = getattr(inspect.getattr_static(self.record, name, None), "fset", None)
        return setter is not None and self.function_sets_attribute(setter, 0)

    def _byte_code_sets_attribute(self, code: CodeType, function: FunctionType) -> bool:
        if any(self.function_sets_attribute(one, 0) for one in _functions_in_closure(function)):
            return True
        for one in _nested_code_objects(code):
            if any(step.opname == "STORE_ATTR" and step.argval == self.attribute for step in dis.get_instructions(one)):
                return True
            if {"setattr", "values"} & set(one.co_names) and self.attribute in _string_constants(one):
                return True
            for name in one.co_names:
                found = function.__globals__.get(name, inspect.getattr_static(self.record, name, None))
                setter = getattr(found, "fset", None)
                if any(isinstance(each, FunctionType) and self.function_sets_attribute(each, 0) for each in (found, setter)):
                    return True
        return False


def _unwrap_callable(function: Any, place: int) -> tuple[Any, int]:
    """Return the plain function inside partials, methods and wrappers, and the position at which it gets the argument that was passed at
    `place`.
    """
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


def _parse_definition(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Return the syntax tree of the function's `def`. Returns None if there is no source code or no `def`, as for a lambda."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _local_aliases(function: ast.AST, name: str) -> set[str]:
    """Return all local names of the object that has the name `name`. For example, after `one = order` the object `order` has the names
    `one` and `order`.
    """
    names = {name}
    for _ in range(3):
        for one in ast.walk(function):
            if isinstance(one, ast.Assign) and _is_name_in(one.value, names):
                names.update(target.id for target in one.targets if isinstance(target, ast.Name))
    return names


def _is_name_in(one: ast.expr, names: set[str]) -> bool:
    return isinstance(one, ast.Name) and one.id in names


def _resolve_callee(called: ast.expr, function: FunctionType) -> Any:
    """Return the function that this expression names inside `function`. Returns None if that cannot be found out."""
    if isinstance(called, ast.Attribute):
        owner = _resolve_callee(called.value, function)
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


def _functions_in_closure(function: FunctionType) -> Iterator[FunctionType]:
    """Yield the functions in the function's closure, such as the one that a decorator's wrapper calls."""
    for cell in function.__closure__ or ():
        try:
            found = cell.cell_contents
        except ValueError:  # raised if the closure's cell is still empty
            continue
        if isinstance(found, FunctionType):
            yield found


def _nested_code_objects(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _nested_code_objects(one)


def _string_constants(code: CodeType) -> set[object]:
    """Return the strings among the constants of a code object, also those in tuples: names of keyword arguments are kept in tuples."""
    found: set[object] = set()
    for one in code.co_consts:
        found.update(one if isinstance(one, tuple) else (one,) if isinstance(one, str) else ())
    return found
