"""Reads a handler's source: which values the handler sets in its record on each path, and which other rows it updates by `+=`. It runs no
handler.

If the source cannot be followed, for example since it passes the record to a function, there is no result, so that `check` gives no false
warning.
"""

from __future__ import annotations

import ast
import builtins
import enum
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from groundstate.rules.column_demands import ANY, OTHER

PATHS_MOST = 64  # a handler with more paths than this is not followed
_HARMLESS = {"isinstance", "print", "len", "str", "repr", "id", "type", "format", "hash", "bool"}
_OF_A_SESSION = {"add", "add_all", "get", "get_one", "scalar", "scalars", "flush"}


def attributes_set_per_path(handler: Callable[..., Any]) -> list[dict[str, Any]] | None:
    """Return one dict for each path through the handler that does not raise: the attributes of the record that the path sets, with their
    values. Return None if the source cannot be followed.

    A value is the constant that was set last, OTHER for an unknown value that is not NULL, or ANY if nothing is known of the value.
    """
    function, written = _parse_source(handler)
    taken = [*written.args.posonlyargs, *written.args.args] if written else []
    if written is None or not taken or not isinstance(function, FunctionType) or len(written.decorator_list) > 1:
        return None
    try:
        return _Reader(taken[0].arg, function).read_paths(written)
    except _NotFollowed:
        return None


def find_shared_row_update(handler: Callable[..., Any], session: str | None) -> str | None:
    """Return the text `other.attribute` of the handler's first statement `other.attribute += ...`; None if there is none.

    Only statements count in which the handler got `other` from its record or its session: they read a row other than the record, and write
    it back. `session` is the name of the handler's session parameter, or None.
    """
    _, written = _parse_source(handler)
    if written is None:
        return None
    taken = [*written.args.posonlyargs, *written.args.args]
    from_here = {session, *(one.arg for one in taken[:1])}
    rows: set[str] = set()
    for one in ast.walk(written):
        match one:
            case ast.Assign(targets=[ast.Name(name)], value=source) | ast.For(target=ast.Name(name), iter=source):
                if from_here & {part.id for part in ast.walk(source) if isinstance(part, ast.Name)}:
                    rows.add(name)
    for one in ast.walk(written):
        match one:
            case ast.AugAssign(target=ast.Attribute(value=ast.Name(name)) as target) if name in rows:
                return ast.unparse(target)
    return None


def _parse_source(handler: Callable[..., Any]) -> tuple[Any, ast.FunctionDef | None]:
    """Return the pair (function without its decorators, its syntax tree). The tree is None if the source is not available."""
    function = inspect.unwrap(handler)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return function, None
    return function, next((one for one in tree.body if isinstance(one, ast.FunctionDef)), None)


class _NotFollowed(Exception):
    """Raised if the handler's source cannot be followed."""


@dataclass
class _Reader:
    record: str
    function: FunctionType
    _returned: list[dict[str, Any]] = field(default_factory=list)

    def read_paths(self, written: ast.FunctionDef) -> list[dict[str, Any]]:
        falls = self._follow_statements(written.body, [{}])
        return [*self._returned, *falls]

    def _follow_statements(self, body: Sequence[ast.stmt], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return one dict of set attributes for each path that reaches the end of these statements. `before` has one dict for each path
        that reaches their beginning.
        """
        falls = [dict(one) for one in before]
        for one in body:
            falls = self._follow_statement(one, falls)
            if len(falls) + len(self._returned) > PATHS_MOST:
                raise _NotFollowed
            if not falls:
                break
        return falls

    def _follow_statement(self, one: ast.stmt, falls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        match one:
            case ast.Return():
                self._require_record_unchanged(one)
                self._returned += falls
                return []
            case ast.Raise():
                return []
            case ast.If():
                self._require_record_unchanged(one.test)
                return self._follow_statements(one.body, falls) + self._follow_statements(one.orelse, falls)
            case ast.For() | ast.While():
                self._require_record_unchanged(one.iter if isinstance(one, ast.For) else one.test)
                return falls + self._follow_statements([*one.body, *one.orelse], falls)
            case ast.With():
                for item in one.items:
                    self._require_record_unchanged(item.context_expr)
                return self._follow_statements(one.body, falls)
            case ast.Match():
                self._require_record_unchanged(one.subject)
                found = [path for case in one.cases for path in self._follow_statements(case.body, falls)]
                last = one.cases[-1]
                whole = last.guard is None and isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
                return found if whole else found + falls
            case (
                ast.Try() | ast.Break() | ast.Continue() | ast.FunctionDef() | ast.ClassDef() | ast.Delete() | ast.Global() | ast.Nonlocal()
            ):
                raise _NotFollowed
        self._require_record_unchanged(one)
        for name, value in self._attributes_set_by(one):
            for path in falls:
                path[name] = value
        return falls

    def _attributes_set_by(self, one: ast.stmt) -> Iterator[tuple[str, Any]]:
        if isinstance(one, ast.AugAssign) and (name := self._name_of_record_attribute(one.target)) is not None:
            yield name, OTHER
        elif isinstance(one, ast.AnnAssign) and one.value is not None and (name := self._name_of_record_attribute(one.target)) is not None:
            yield name, self._constant_or_other(one.value)
        elif isinstance(one, ast.Assign):
            for target in one.targets:
                yield from self._pairs_assigned(target, one.value)

    def _pairs_assigned(self, target: ast.expr, value: ast.expr) -> Iterator[tuple[str, Any]]:
        if not isinstance(target, ast.Tuple | ast.List):
            name = self._name_of_record_attribute(target)
            if name is not None:
                yield name, self._constant_or_other(value)
        elif isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
            for to, given in zip(target.elts, value.elts, strict=True):
                yield from self._pairs_assigned(to, given)
        else:
            yield from ((name, ANY) for to in target.elts if (name := self._name_of_record_attribute(to)) is not None)

    def _name_of_record_attribute(self, target: ast.expr) -> str | None:
        """Return the attribute's name if the target of an assignment is an attribute of the record, else None."""
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == self.record:
            return target.attr
        return None

    # ---- values --------------------------------------------------------------------------------------------------------------------
    def _constant_or_other(self, node: ast.expr) -> Any:
        if isinstance(node, ast.IfExp | ast.BoolOp):
            return ANY
        known, value = self._resolve_expression(node)
        if not known:
            return OTHER
        return value if value is None or isinstance(value, str | int | bool | enum.Enum) else OTHER

    def _resolve_expression(self, node: ast.expr) -> tuple[bool, Any]:
        """Return the pair (whether the expression's value is known, the value). It is known for a constant, a global name, and a member of
        an enum.
        """
        if isinstance(node, ast.Constant):
            return True, node.value
        if isinstance(node, ast.Name):
            return self._resolve_name(node.id)
        if isinstance(node, ast.Attribute):
            known, base = self._resolve_expression(node.value)
            if known and isinstance(base, ModuleType):
                return node.attr in vars(base), vars(base).get(node.attr)
            if known and isinstance(base, type) and issubclass(base, enum.Enum):
                return node.attr in base.__members__, base.__members__.get(node.attr)
            if known and isinstance(base, enum.Enum) and node.attr in ("value", "name"):
                return True, getattr(base, f"_{node.attr}_")
        return False, None

    def _resolve_name(self, name: str) -> tuple[bool, Any]:
        code = self.function.__code__
        if name in (*code.co_varnames, *code.co_cellvars):
            return False, None
        if name in code.co_freevars:
            cell = (self.function.__closure__ or ())[code.co_freevars.index(name)]
            try:
                return True, cell.cell_contents
            except ValueError:
                return False, None
        known: Mapping[str, Any] = {**vars(builtins), **self.function.__globals__}
        return name in known, known.get(name)

    # ---- what cannot be followed -----------------------------------------------------------------------------------------------------
    def _require_record_unchanged(self, part: ast.AST) -> None:
        """Raise _NotFollowed if this part of the source passes the record on or gives it another name: its changes cannot be followed."""
        for one in ast.walk(part):
            if isinstance(one, ast.Lambda | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
                raise _NotFollowed
            if isinstance(one, ast.Assign | ast.AnnAssign | ast.Return) and one.value is not None and self._is_record(one.value):
                raise _NotFollowed
            if isinstance(one, ast.Call) and not self._leaves_record_unchanged(one):
                raise _NotFollowed

    def _leaves_record_unchanged(self, call: ast.Call) -> bool:
        function = call.func
        if isinstance(function, ast.Attribute) and self._is_record(function.value):
            return False  # a method of the record may set any attribute
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in self._parameter_names:
            return function.attr in _OF_A_SESSION or not self._is_session(function.value.id)
        given = [*call.args, *(one.value for one in call.keywords)]
        if not any(self._is_record(one) for one in given):
            return True
        known, called = self._resolve_expression(function)
        return known and (isinstance(called, type) or (isinstance(function, ast.Name) and function.id in _HARMLESS))

    @property
    def _parameter_names(self) -> Sequence[str]:
        code = self.function.__code__
        return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    def _is_session(self, name: str) -> bool:
        annotation = self.function.__annotations__.get(name)
        return "Session" in (annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))

    def _is_record(self, one: ast.expr) -> bool:
        inner = one.value if isinstance(one, ast.Starred) else one
        return isinstance(inner, ast.Name) and inner.id == self.record
