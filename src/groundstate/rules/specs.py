"""Holds what an app declares, as checked values: external services, calls and reactions. It holds SQL expressions and functions, and runs
neither.

The public classes of `groundstate.app` check what a user wrote and make these values; the engine reads only these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict

from sqlalchemy import Column, ColumnElement
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from groundstate.rules import begun_kind
from groundstate.rules.attempt import Terms
from groundstate.rules.begun_kind import Kind
from groundstate.rules.due import DueSpec
from groundstate.rules.in_order import InOrder
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import InDoubt, Retry
from groundstate.rules.rate import Rate

UNNAMED = "_"  # a lookup of this name counts as one without a name


class KeptOutBy(TypedDict):
    """KeptOutBy holds the arguments of `blocking.blocker` that come from a reaction's declaration."""

    done_column: bool
    repeats: bool
    columns: tuple[str, ...]
    same_call: tuple[str, ...]


def _column_name(attribute: InstrumentedAttribute[Any]) -> str:
    column = attribute.property.columns[0] if hasattr(attribute.property, "columns") else None
    return column.name if isinstance(column, Column) else attribute.key


@dataclass(frozen=True, eq=False)
class Function:
    """A Function is a user's function with what it wants beside its first arguments: parameter name -> name of what is supplied for it.

    These names are 'session', 'ctx', 'key', 'client', 'occurrence', and for a call_many 'keys'.
    """

    call: Callable[..., Any]
    wants: Mapping[str, str] = field(default_factory=dict)
    is_async: bool = False

    def __call__(self, *args: Any, **supplies: Any) -> Any:
        """Call the function with those of `supplies` that it wants."""
        if not self.wants:
            return self.call(*args)
        return self.call(*args, **{name: supplies[what] for name, what in self.wants.items()})

    @property
    def name(self) -> str:
        return getattr(self.call, "__qualname__", repr(self.call))

    @property
    def plain_name(self) -> str:
        """Return the function's name without its module and class, which is the same in each process, to compare it with a name stored in a
        row.
        """
        call: Any = self.call
        while isinstance(call, partial):
            call = call.func
        return str(getattr(call, "__name__", None) or type(call).__name__)


# An exception's type, its dotted path, or a function that takes an exception and returns whether it is meant.
NotDoneWhen = type[Exception] | str | Callable[[Exception], bool]


@dataclass(frozen=True, eq=False)
class ServiceSpec:
    """An OutsideSpec declares an external service. `not_done`: exceptions that mean that a call was certainly not carried out.

    limit: how many calls and lookups may be in flight at once, in the whole fleet; None means 100 in each worker. `limit_per` and
    `rate_per` apply to each value of a reaction's `per` column.
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
    """A CallSpec declares a call to an external service. `lookup` is set by the decorator of that name, after the call was declared."""

    service: ServiceSpec
    function: Function
    in_doubt: InDoubt
    timeout: timedelta
    retry: Retry
    load: Sequence[Any] = ()  # SQLAlchemy loader options for the snapshot
    stop_when_overtaken: bool = False
    many: int | None = None  # how many records one request is made for; None for an ordinary call
    lookup: Function | None = None
    outcome_type: Any = Any  # the annotation of what it returns, resolved; for a call_many that of one record's outcome
    found_type: Any = Any  # the annotation of what its lookup returns, resolved, without Absent and Unknown
    argument_type: Any = Any  # the annotation of its argument, resolved; for a call_many that of one element
    wants_keys: str | None = None  # call_many: the name of the parameter that takes the Sequence[IdempotencyKey]
    name: str = ""  # the name that attempts record; the function's own name where it is empty
    answers_for: Sequence[str] = ()  # services whose calls, begun by earlier code, its lookup knows as well

    @property
    def asks_its_lookup(self) -> bool:
        """Return whether the call has a lookup, and a policy that ever asks it."""
        return self.lookup is not None and self.in_doubt.kind in begun_kind.ASKING


@dataclass(frozen=True, eq=False)
class EveryChild:
    """An EveryChild is a clause 'has children, and none for which a clause does not hold'. Its expression is among the reaction's clauses.

    parent_key: the child's columns that name the parent's primary key, in the order of the parent's mapper.
    """

    child: type
    relationship: str
    parent_key: Sequence[InstrumentedAttribute[Any]]


@dataclass(eq=False)
class ReactionSpec:
    """A ReactionSpec is a declared reaction whose arguments were checked."""

    app: str
    name: str
    record: type
    mapper: Mapper[Any]
    clauses: tuple[ColumnElement[bool], ...]  # operands of the top-level AND, which include that the done column is NULL
    handler: Function
    call: CallSpec | None = None
    prepare: Function | None = None
    occurrence: tuple[InstrumentedAttribute[Any], ...] = ()
    occurrence_said: bool = False  # whether the author declared the occurrence; else it comes from the due time
    due: DueSpec | None = None
    done_column: str | None = None  # the name of the mapped attribute
    children: tuple[EveryChild, ...] = ()
    in_order: InOrder | None = None  # its columns are attributes of the record
    per: InstrumentedAttribute[Any] | None = None  # the column whose value is the tenant of the external service
    retry: Retry = field(default_factory=Retry)
    overtaken: Function | None = None
    when_overtaken: WhenOvertaken | None = None  # what an overtaken outcome means; None: not declared, or the `overtaken` handler decides
    gave_up: Function | None = None
    expired: Function | None = None
    outcome_type: Any = Any  # the annotation of the handler's outcome
    store: Any = None  # the app's Store that owns the record's table
    repeats: bool = False  # whether its call may be made twice, by `InDoubt.repeat()`; stays set in `late`
    key_name: str = ""  # the name that keys are made of, where the code declares one; '' means `name`
    same_call: tuple[str, ...] = ()  # the app's other reactions that make the same call on the same table; set at the start

    def __post_init__(self) -> None:
        if self.call is not None:
            self.repeats = self.call.in_doubt.kind == "repeat"

    @property
    def terms(self) -> Terms:
        """Return what the state transitions of the reaction's attempts depend on."""
        if self.call is None:
            return Terms(policy=None, retry=self.retry)
        call = self.call
        return Terms(call.in_doubt, call.retry, call.timeout, call.lookup is not None, self.kind, call.answers_for)

    @property
    def kind(self) -> Kind | None:
        """Return what the reaction's calls are begun with, as attempts record it; None where it makes no call."""
        call = self.call
        if call is None:
            return None
        find = None if call.lookup is None or call.lookup.plain_name == UNNAMED else call.lookup.plain_name
        gives_key = "key" in call.function.wants.values() or call.wants_keys is not None
        return Kind(call.service.name, call.name or call.function.plain_name, find, gives_key, call.in_doubt.kind, self.occurrence_columns)

    @property
    def kept_out_by(self) -> KeptOutBy:
        """Return the arguments for `blocking.blocker` that decide which attempts keep the reaction from a record."""
        return {
            "done_column": self.done_column is not None,
            "repeats": self.repeats,
            "columns": self.occurrence_columns,
            "same_call": self.same_call,
        }

    @property
    def occurrence_columns(self) -> tuple[str, ...]:
        """Return the names of the occurrence's columns in the database: renaming an attribute in Python leaves the occurrence the same."""
        return tuple(_column_name(one) for one in self.occurrence)

    @property
    def late(self) -> ReactionSpec:
        """Return the part of a reaction with `valid_for` that handles records that are too late. It makes no call: it runs the `expired`
        handler, under the same name.

        It has no `in_order`, because a record that is too late has left its queue.
        """
        assert self.due is not None and self.expired is not None  # noqa: S101, PT018 - a reaction without these is refused at the start
        return replace(
            self,
            due=replace(self.due, expires=True),
            handler=self.expired,
            call=None,
            prepare=None,
            overtaken=None,
            when_overtaken=None,
            gave_up=None,
            retry=self.terms.retry,
            in_order=None,
            per=None,
        )

    @property
    def table_name(self) -> str:
        """Return schema.table of the base mapper, by which attempts block other reactions on the same table."""
        table: Any = self.mapper.base_mapper.local_table
        return str(table.fullname)

    @property
    def records(self) -> str:
        """Return the text by which attempts identify the kind of a record: its table, and its key columns with the Python types of their
        values.
        """
        return f"{self.table_name} ({', '.join(f'{one.name} {_value_of(one.type)}' for one in self.mapper.base_mapper.primary_key)})"


def _value_of(kind: Any) -> str:
    """Return the name of the Python type of a column's values, which determines their text in an attempt; else the column type's name."""
    try:
        return str(kind.python_type.__name__)
    except NotImplementedError:
        return type(kind).__name__
