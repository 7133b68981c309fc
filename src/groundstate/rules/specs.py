"""Defines the checked form of what an app declares: external services, calls and reactions.

The public classes of `groundstate.app` check the user's arguments and make specs of them, and the engine reads only the specs. A spec
contains SQL expressions and functions, but does not run them.
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

UNNAMED = "_"  # the name of a lookup function that counts as unnamed


class BlockingArguments(TypedDict):
    """BlockingArguments are the arguments of `blocking.find_blocking_attempt` that come from a reaction's declaration."""

    done_column: bool
    repeats: bool
    columns: tuple[str, ...]
    same_call: tuple[str, ...]


def _column_name(attribute: InstrumentedAttribute[Any]) -> str:
    column = attribute.property.columns[0] if hasattr(attribute.property, "columns") else None
    return column.name if isinstance(column, Column) else attribute.key


@dataclass(frozen=True, eq=False)
class Function:
    """A Function is a user's function, with the parameters that it takes after its positional arguments.

    wants: what is passed to each of these parameters, by name: 'session', 'ctx', 'key', 'client', 'occurrence', or 'keys' (call_many).
    """

    call: Callable[..., Any]
    wants: Mapping[str, str] = field(default_factory=dict)
    is_async: bool = False

    def __call__(self, *args: Any, **supplies: Any) -> Any:
        """Call the function with the positional arguments, and with those values in `supplies` for which it has a parameter."""
        if not self.wants:
            return self.call(*args)
        return self.call(*args, **{name: supplies[what] for name, what in self.wants.items()})

    @property
    def name(self) -> str:
        return getattr(self.call, "__qualname__", repr(self.call))

    @property
    def plain_name(self) -> str:
        """Return the function's name without its module and class. Every process has the same name for it, so it can be stored."""
        call: Any = self.call
        while isinstance(call, partial):
            call = call.func
        return str(getattr(call, "__name__", None) or type(call).__name__)


# Says which exceptions mean that a call was certainly not carried out: an exception type, its dotted path, or a function that takes an
# exception and returns whether the exception means this.
NotDoneWhen = type[Exception] | str | Callable[[Exception], bool]


@dataclass(frozen=True, eq=False)
class ServiceSpec:
    """A ServiceSpec is a declared external service.

    limit: how many calls and lookups may be in flight at once, in all workers together; None means 100 in each worker. not_done: exceptions
    which mean that a call was certainly not carried out. limit_per, rate_per: like limit and rate, for each value of a reaction's `per`
    column.
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
    """A CallSpec is a declared call to an external service. The decorator `lookup` of the call sets the field `lookup` later."""

    service: ServiceSpec
    function: Function
    in_doubt: InDoubt
    timeout: timedelta
    retry: Retry
    load: Sequence[Any] = ()  # SQLAlchemy loader options for loading the record that the call is given
    stop_when_overtaken: bool = False
    many: int | None = None  # maximum number of records in one request; None for an ordinary call, which is for one record
    lookup: Function | None = None
    outcome_type: Any = Any  # resolved annotation of the function's result; for a call_many the type of one record's outcome
    found_type: Any = Any  # resolved annotation of the lookup's result, without Absent and Unknown
    argument_type: Any = Any  # resolved annotation of the function's argument; for a call_many the type of one element
    wants_keys: str | None = None  # name of the parameter of a call_many that takes the Sequence[IdempotencyKey]; None without one
    name: str = ""  # the call's name, which is stored in its attempts; "" means the function's own name
    answers_for: Sequence[str] = ()  # names of services that older versions called, and whose calls the lookup knows too

    @property
    def uses_lookup(self) -> bool:
        """Return whether the call has a lookup, and an in-doubt policy under which the lookup may be asked."""
        return self.lookup is not None and self.in_doubt.kind in begun_kind.ASKING


@dataclass(frozen=True, eq=False)
class EveryChild:
    """An EveryChild is a declared clause `every_child`: the record has children, and some clauses hold for each child.

    The SQL expression of the clause is among the reaction's clauses. parent_key: the child's columns that refer to the parent's primary
    key, in the order of that key.
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
    # The clauses, joined by AND, are the condition. If there is a done column, one of the clauses demands that it is NULL.
    clauses: tuple[ColumnElement[bool], ...]
    handler: Function
    call: CallSpec | None = None
    prepare: Function | None = None
    occurrence: tuple[InstrumentedAttribute[Any], ...] = ()
    occurrence_said: bool = False  # whether the author declared `occurrence=`; else the occurrence comes from the due time
    due: DueSpec | None = None
    done_column: str | None = None  # name of the done column's mapped attribute; None without a done column
    children: tuple[EveryChild, ...] = ()
    in_order: InOrder | None = None  # the order in which the reaction acts on records; None for no order
    per: InstrumentedAttribute[Any] | None = None  # a column: each of its values has its own limit and rate at the external service
    retry: Retry = field(default_factory=Retry)
    overtaken: Function | None = None
    when_overtaken: WhenOvertaken | None = None  # what becomes of an overtaken outcome; None if not declared, or a handler decides it
    gave_up: Function | None = None
    expired: Function | None = None
    outcome_type: Any = Any  # annotation of the handler's outcome parameter
    store: Any = None  # the app's Store that owns the record's table
    repeats: bool = False  # whether the policy of the call is InDoubt.repeat(); the variant for expired records keeps the value
    key_name: str = ""  # the reaction's name in idempotency keys; "" means `name`
    same_call: tuple[str, ...] = ()  # names of the app's other reactions that make this call for this table; set when the app starts

    def __post_init__(self) -> None:
        if self.call is not None:
            self.repeats = self.call.in_doubt.kind == "repeat"

    @property
    def terms(self) -> Terms:
        """Return the Terms of the reaction: its policy, timeout and other choices on which the state transitions of its attempts depend."""
        if self.call is None:
            return Terms(policy=None, retry=self.retry)
        call = self.call
        return Terms(call.in_doubt, call.retry, call.timeout, call.lookup is not None, self.kind, call.answers_for)

    @property
    def kind(self) -> Kind | None:
        """Return the Kind of the reaction's calls (service, call, lookup, policy), as attempts store it; None if it makes no call."""
        call = self.call
        if call is None:
            return None
        find = None if call.lookup is None or call.lookup.plain_name == UNNAMED else call.lookup.plain_name
        gives_key = "key" in call.function.wants.values() or call.wants_keys is not None
        return Kind(call.service.name, call.name or call.function.plain_name, find, gives_key, call.in_doubt.kind, self.occurrence_columns)

    @property
    def blocking_arguments(self) -> BlockingArguments:
        """Return the arguments of `blocking.find_blocking_attempt` for this reaction."""
        return {
            "done_column": self.done_column is not None,
            "repeats": self.repeats,
            "columns": self.occurrence_columns,
            "same_call": self.same_call,
        }

    @property
    def occurrence_columns(self) -> tuple[str, ...]:
        """Return the names of the occurrence's columns in the database. The names stay the same when a Python attribute is renamed."""
        return tuple(_column_name(one) for one in self.occurrence)

    @property
    def expired_variant(self) -> ReactionSpec:
        """Return the variant of this reaction that runs the `expired` handler, for records on which it is too late to act.

        Only a reaction with `valid_for` has this variant. The variant has the reaction's name. It makes no call, and has no `in_order`,
        because an expired record has left its queue.
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
        """Return the name of the record's base table, with its schema if it has one. Attempts record the table by this name."""
        table: Any = self.mapper.base_mapper.local_table
        return str(table.fullname)

    @property
    def record_kind(self) -> str:
        """Return a text that says which records the attempts refer to: the table, and its key columns with their Python types."""
        return (
            f"{self.table_name} ({', '.join(f'{one.name} {_python_type_name(one.type)}' for one in self.mapper.base_mapper.primary_key)})"
        )


def _python_type_name(kind: Any) -> str:
    """Return the name of the Python type of a column's values; if the column type declares none, the name of the column type."""
    try:
        return str(kind.python_type.__name__)
    except NotImplementedError:
        return type(kind).__name__
