"""Reads a handler's source: which values it leaves in its record on each path, and which other rows it updates by `+=`. It runs no handler.

If a handler cannot be followed, for example since it passes the record to a function, nothing is said about it, so that `check` gives no
false warning.
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

PATHS_MOST = 64  # paths through one handler; a handler with more is not followed
_HARMLESS = {"isinstance", "print", "len", "str", "repr", "id", "type", "format", "hash", "bool"}
_OF_A_SESSION = {"add", "add_all", "get", "get_one", "scalar", "scalars", "flush"}


def attributes_set_per_path(handler: Callable[..., Any]) -> list[dict[str, Any]] | None:
    """Return the attributes that the handler sets, as one dict for each path that does not raise; None if it cannot be followed.

    The value is the constant that was set last; OTHER for an unknown value that is not NULL; ANY if nothing is known of it.
    """
    function, written = _source(handler)
    taken = [*written.args.posonlyargs, *written.args.args] if written else []
    if written is None or not taken or not isinstance(function, FunctionType) or len(written.decorator_list) > 1:
        return None
    try:
        return _Reader(taken[0].arg, function).of(written)
    except _NotFollowed:
        return None


def counted_beside(handler: Callable[..., Any], session: str | None) -> str | None:
    """Return the first `other.attribute += ...` of the handler, where `other` came from its record or session; None if there is none.

    Such a statement reads a row beside the record and writes it back. `session` is the name of the handler's session parameter.
    """
    _, written = _source(handler)
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


def _source(handler: Callable[..., Any]) -> tuple[Any, ast.FunctionDef | None]:
    """Return the function itself and its syntax tree. The tree is None if the source is not available."""
    function = inspect.unwrap(handler)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return function, None
    return function, next((one for one in tree.body if isinstance(one, ast.FunctionDef)), None)


class _NotFollowed(Exception):
    pass


@dataclass
class _Reader:
    record: str
    function: FunctionType
    _returned: list[dict[str, Any]] = field(default_factory=list)

    def of(self, written: ast.FunctionDef) -> list[dict[str, Any]]:
        falls = self._through(written.body, [{}])
        return [*self._returned, *falls]

    def _through(self, body: Sequence[ast.stmt], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the attributes set on each path that reaches the end of these statements, given those of the paths `before`."""
        falls = [dict(one) for one in before]
        for one in body:
            falls = self._after(one, falls)
            if len(falls) + len(self._returned) > PATHS_MOST:
                raise _NotFollowed
            if not falls:
                break
        return falls

    def _after(self, one: ast.stmt, falls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        match one:
            case ast.Return():
                self._look_into(one)
                self._returned += falls
                return []
            case ast.Raise():
                return []
            case ast.If():
                self._look_into(one.test)
                return self._through(one.body, falls) + self._through(one.orelse, falls)
            case ast.For() | ast.While():
                self._look_into(one.iter if isinstance(one, ast.For) else one.test)
                return falls + self._through([*one.body, *one.orelse], falls)
            case ast.With():
                for item in one.items:
                    self._look_into(item.context_expr)
                return self._through(one.body, falls)
            case ast.Match():
                self._look_into(one.subject)
                found = [path for case in one.cases for path in self._through(case.body, falls)]
                last = one.cases[-1]
                whole = last.guard is None and isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
                return found if whole else found + falls
            case (
                ast.Try() | ast.Break() | ast.Continue() | ast.FunctionDef() | ast.ClassDef() | ast.Delete() | ast.Global() | ast.Nonlocal()
            ):
                raise _NotFollowed
        self._look_into(one)
        for name, value in self._set_by(one):
            for path in falls:
                path[name] = value
        return falls

    def _set_by(self, one: ast.stmt) -> Iterator[tuple[str, Any]]:
        if isinstance(one, ast.AugAssign) and (name := self._attribute(one.target)) is not None:
            yield name, OTHER
        elif isinstance(one, ast.AnnAssign) and one.value is not None and (name := self._attribute(one.target)) is not None:
            yield name, self._value(one.value)
        elif isinstance(one, ast.Assign):
            for target in one.targets:
                yield from self._pairs(target, one.value)

    def _pairs(self, target: ast.expr, value: ast.expr) -> Iterator[tuple[str, Any]]:
        if not isinstance(target, ast.Tuple | ast.List):
            name = self._attribute(target)
            if name is not None:
                yield name, self._value(value)
        elif isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
            for to, given in zip(target.elts, value.elts, strict=True):
                yield from self._pairs(to, given)
        else:
            yield from ((name, ANY) for to in target.elts if (name := self._attribute(to)) is not None)

    def _attribute(self, target: ast.expr) -> str | None:
        """Return the name of the attribute if the target is an attribute of the record, else None."""
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == self.record:
            return target.attr
        return None

    # ---- values --------------------------------------------------------------------------------------------------------------------
    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.IfExp | ast.BoolOp):
            return ANY
        known, value = self._resolved(node)
        if not known:
            return OTHER
        return value if value is None or isinstance(value, str | int | bool | enum.Enum) else OTHER

    def _resolved(self, node: ast.expr) -> tuple[bool, Any]:
        """Return whether the expression is known, and its value: a constant, a global name of the module, or a member of an enum."""
        if isinstance(node, ast.Constant):
            return True, node.value
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            known, base = self._resolved(node.value)
            if known and isinstance(base, ModuleType):
                return node.attr in vars(base), vars(base).get(node.attr)
            if known and isinstance(base, type) and issubclass(base, enum.Enum):
                return node.attr in base.__members__, base.__members__.get(node.attr)
            if known and isinstance(base, enum.Enum) and node.attr in ("value", "name"):
                return True, getattr(base, f"_{node.attr}_")
        return False, None

    def _named(self, name: str) -> tuple[bool, Any]:
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
    def _look_into(self, part: ast.AST) -> None:
        """Raise _NotFollowed if code could change the record unseen, since the record is passed on or gets another name."""
        for one in ast.walk(part):
            if isinstance(one, ast.Lambda | ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
                raise _NotFollowed
            if isinstance(one, ast.Assign | ast.AnnAssign | ast.Return) and one.value is not None and self._is_record(one.value):
                raise _NotFollowed
            if isinstance(one, ast.Call) and not self._is_harmless(one):
                raise _NotFollowed

    def _is_harmless(self, call: ast.Call) -> bool:
        function = call.func
        if isinstance(function, ast.Attribute) and self._is_record(function.value):
            return False  # a method of the record may set any attribute
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in self._parameters:
            return function.attr in _OF_A_SESSION or not self._is_session(function.value.id)
        given = [*call.args, *(one.value for one in call.keywords)]
        if not any(self._is_record(one) for one in given):
            return True
        known, called = self._resolved(function)
        return known and (isinstance(called, type) or (isinstance(function, ast.Name) and function.id in _HARMLESS))

    @property
    def _parameters(self) -> Sequence[str]:
        code = self.function.__code__
        return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    def _is_session(self, name: str) -> bool:
        annotation = self.function.__annotations__.get(name)
        return "Session" in (annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))

    def _is_record(self, one: ast.expr) -> bool:
        inner = one.value if isinstance(one, ast.Starred) else one
        return isinstance(inner, ast.Name) and inner.id == self.record
