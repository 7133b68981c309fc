"""What was declared, as values: outsides, calls and reactions. Holds SQL expressions and functions; runs neither.

The public classes of `groundstate.app` check what a user wrote and make these; the engine reads these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict

from sqlalchemy import Column, ColumnElement
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from groundstate.rules import kind
from groundstate.rules.attempt import Terms
from groundstate.rules.due import DueSpec
from groundstate.rules.kind import Kind
from groundstate.rules.order import InOrder
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import InDoubt, Retry
from groundstate.rules.rate import Rate

UNNAMED = "_"  # a find of this name has none to be known by


class KeptOutBy(TypedDict):
    """See `blocking.blocker`."""

    fact: bool
    again: bool
    columns: tuple[str, ...]
    same_call: tuple[str, ...]


def _column_name(attribute: InstrumentedAttribute[Any]) -> str:
    column = attribute.property.columns[0] if hasattr(attribute.property, "columns") else None
    return column.name if isinstance(column, Column) else attribute.key


@dataclass(frozen=True, eq=False)
class Function:
    """A user's function and what it wants beside its first arguments: parameter name -> what is supplied for it.

    Supplies are: 'session', 'at', 'key', 'client', 'occurrence', and of a call_many 'keys'.
    """

    call: Callable[..., Any]
    wants: Mapping[str, str] = field(default_factory=dict)
    is_async: bool = False

    def __call__(self, *args: Any, **supplies: Any) -> Any:
        """Calls it with those of `supplies` that it wants."""
        if not self.wants:
            return self.call(*args)
        return self.call(*args, **{name: supplies[what] for name, what in self.wants.items()})

    @property
    def name(self) -> str:
        return getattr(self.call, "__qualname__", repr(self.call))

    @property
    def plain_name(self) -> str:
        """The function's name without its module and class, the same in each process: for what is compared with what a row says."""
        call: Any = self.call
        while isinstance(call, partial):
            call = call.func
        return str(getattr(call, "__name__", None) or type(call).__name__)


# An exception's type, its dotted path, or a function that is given an exception and tells.
NotDoneWhen = type[Exception] | str | Callable[[Exception], bool]


@dataclass(frozen=True, eq=False)
class OutsideSpec:
    """An endpoint. `not_done`: exceptions that mean that surely nothing happened.

    limit: how many calls and finds may be under way at once, in the whole fleet; None: 100 in each worker. What ends in `_per` is for
    each value of a reaction's `per` column.
    """

    name: str
    limit: int | None = None
    not_done: Sequence[NotDoneWhen] = ()
    client: Callable[[], Any] | None = None
    rate: Rate | None = None
    limit_per: int | None = None
    rate_per: Rate | None = None


@dataclass(eq=False)
class CallSpec:
    """A call to an outside. `find` is set by the decorator of that name, after the call was declared."""

    outside: OutsideSpec
    function: Function
    in_doubt: InDoubt
    timeout: timedelta
    retry: Retry
    load: Sequence[Any] = ()  # SQLAlchemy loader options for the snapshot
    stop_when_overtaken: bool = False
    many: int | None = None  # how many records one outside call is made for; None for an ordinary call
    find: Function | None = None
    outcome_type: Any = Any  # the annotation of what it returns, resolved; of a call_many that of one record's outcome
    found_type: Any = Any  # the same of its find, without Absent and Unknown
    argument_type: Any = Any  # the annotation of what it takes, resolved; of a call_many that of one
    wants_keys: str | None = None  # call_many: the name of the parameter that takes the Sequence[Key]
    name: str = ""  # by which its attempts know it; the function's own where nothing else was said
    answers_for: Sequence[str] = ()  # services of whose calls, begun by earlier code, its find knows as well

    @property
    def asks_its_find(self) -> bool:
        """Whether it has a find, and a policy that ever asks it."""
        return self.find is not None and self.in_doubt.kind in kind.ASKING


@dataclass(frozen=True, eq=False)
class EveryChild:
    """A clause 'has children, and none for which a clause does not hold'. Its expression is among the reaction's clauses.

    parent_key: the child's columns that name the parent's primary key, in the parent mapper's order.
    """

    child: type
    relationship: str
    parent_key: Sequence[InstrumentedAttribute[Any]]


@dataclass(eq=False)
class ReactionSpec:
    """A reaction, declared and checked."""

    app: str
    name: str
    record: type
    mapper: Mapper[Any]
    clauses: tuple[ColumnElement[bool], ...]  # operands of the top-level AND; 'fact is NULL' is among them
    handler: Function
    call: CallSpec | None = None
    sends: Function | None = None
    occurrence: tuple[InstrumentedAttribute[Any], ...] = ()
    occurrence_said: bool = False  # by the author, and not taken from the due time
    due: DueSpec | None = None
    fact: str | None = None  # the attribute's name
    children: tuple[EveryChild, ...] = ()
    in_order: InOrder | None = None  # its columns are attributes of the record
    per: InstrumentedAttribute[Any] | None = None  # tells the part of the outside
    retry: Retry = field(default_factory=Retry)
    overtaken: Function | None = None
    when_overtaken: WhenOvertaken | None = None  # what an overtaken outcome means; None: not said, or by the handler above
    gave_up: Function | None = None
    expired: Function | None = None
    outcome_type: Any = Any  # what the handler is annotated with
    store: Any = None  # the app's Store that owns the record's table
    again: bool = False  # its call may be made twice, by the policy `again()`; also of the part that answers what is too late
    key_name: str = ""  # that keys are made of, as the code says it; '' where that is its name
    same_call: tuple[str, ...] = ()  # the app's other reactions that make the same call on the same table: known at the start

    def __post_init__(self) -> None:
        if self.call is not None:
            self.again = self.call.in_doubt.kind == "again"

    @property
    def terms(self) -> Terms:
        """What the transitions depend on."""
        if self.call is None:
            return Terms(policy=None, retry=self.retry)
        call = self.call
        return Terms(call.in_doubt, call.retry, call.timeout, call.find is not None, self.kind, call.answers_for)

    @property
    def kind(self) -> Kind | None:
        """What its calls are begun with, as attempts remember it; None where it makes no call."""
        call = self.call
        if call is None:
            return None
        find = None if call.find is None or call.find.plain_name == UNNAMED else call.find.plain_name
        gives_key = "key" in call.function.wants.values() or call.wants_keys is not None
        return Kind(call.outside.name, call.name or call.function.plain_name, find, gives_key, call.in_doubt.kind, self.occurrence_columns)

    @property
    def kept_out_by(self) -> KeptOutBy:
        """What decides which attempts keep it from a record, as `blocking.blocker` wants it."""
        return {"fact": self.fact is not None, "again": self.again, "columns": self.occurrence_columns, "same_call": self.same_call}

    @property
    def occurrence_columns(self) -> tuple[str, ...]:
        """The names of the occurrence's columns in the database: an attribute's new name is no other occurrence."""
        return tuple(_column_name(one) for one in self.occurrence)

    @property
    def late(self) -> ReactionSpec:
        """Of one with `valid_for`: the part that answers what is too late. DB-only, by the `expired` handler, under the same name.

        It waits in no line: what is too late has left it.
        """
        assert self.due is not None and self.expired is not None  # noqa: S101, PT018 - refused at the start
        return replace(
            self,
            due=replace(self.due, expires=True),
            handler=self.expired,
            call=None,
            sends=None,
            overtaken=None,
            when_overtaken=None,
            gave_up=None,
            retry=self.terms.retry,
            in_order=None,
            per=None,
        )

    @property
    def table_name(self) -> str:
        """schema.table of the base mapper: what attempts block by."""
        table: Any = self.mapper.base_mapper.local_table
        return str(table.fullname)

    @property
    def records(self) -> str:
        """By what attempts know a record of it: the table, and the columns of the key with what their values are."""
        return f"{self.table_name} ({', '.join(f'{one.name} {_value_of(one.type)}' for one in self.mapper.base_mapper.primary_key)})"


def _value_of(kind: Any) -> str:
    """What its values are in Python, which their text in an attempt comes of; the type's own name where it does not say."""
    try:
        return str(kind.python_type.__name__)
    except NotImplementedError:
        return type(kind).__name__
