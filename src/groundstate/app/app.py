"""`App`: the stores of an application, and the reactions and schedules that are declared for records in these stores."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from sqlalchemy import ColumnElement
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import configure_mappers
from sqlalchemy.sql.elements import SQLCoreOperations

from groundstate.app import declaration, decorator_forms, loader_options, source_lint, transports, validate_condition, validate_schedule
from groundstate.app.external_service import Call
from groundstate.app.lifecycle import Running
from groundstate.app.reaction import Plain, Reaction
from groundstate.app.store import Store
from groundstate.rules import bound_values, sqlite_pitfalls
from groundstate.rules import sql_inspect as look
from groundstate.rules.cron import Fold, Gap
from groundstate.rules.due import Due
from groundstate.rules.in_order import InOrder
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import Retry
from groundstate.rules.schedule import Missed, ScheduleSpec
from groundstate.rules.specs import ReactionSpec, ServiceSpec
from groundstate.values.errors import DeclarationError

R = TypeVar("R")  # the class of the record
A = TypeVar("A")  # the first argument of a call
O = TypeVar("O")  # the call's outcome  # noqa: E741 - one letter, like R and P
P = ParamSpec("P")  # the handler's further parameters, for which groundstate supplies values by their annotations
Q = ParamSpec("Q")  # the further parameters of `prepare`, for which groundstate supplies values by their annotations
RC = TypeVar("RC")
OC = TypeVar("OC")

Column = SQLCoreOperations[Any]  # a wider type than InstrumentedAttribute, so that SQLModel's col() is accepted too
Clause = SQLCoreOperations[bool]  # `bool` itself is not accepted, so that a type checker refuses `Order.mailed_at is None`

_LIMITS = ("limit", "rate", "limit_per", "rate_per")
_apps: weakref.WeakValueDictionary[str, App] = weakref.WeakValueDictionary()


class _OnDecorator(Protocol[RC]):
    def __call__(self, handler: Callable[Concatenate[RC, P], None], /) -> Plain[RC, P]: ...


class _OnCallDecorator(Protocol[RC, OC]):
    def __call__(self, handler: Callable[Concatenate[RC, OC, P], None], /) -> Reaction[RC, OC, P]: ...


class App(Running):
    """An application: its stores, and its reactions and schedules by name.

    The app's name is part of each idempotency key. If you give the app another name, run `groundstate rename --whole-app`: otherwise its
    calls get other keys, and a provider takes a repeated call for a new one.

    Args:
        name: the name of the app.
        stores: the databases that hold the app's records.
        transport: the URL of the transport that carries hints (messages that say where work may be) between the app's processes, or a
            function that returns the URL, called at the start: `nats://...`, `redis://...`, `amqp://...`, `postgresql://...`, or `memory:`
            for hints within this process only. If left out, hints about a PostgreSQL store travel through that store.
        keys: whether hints contain the primary keys of records. Without the keys, each hint costs one more query. Leave the keys out if a
            primary key is a secret.

    Raises:
        DeclarationError: another app of this process has this name, or two stores own the same tables.
    """

    def __init__(self, name: str, *stores: Store, transport: str | Callable[[], str] | None = None, keys: bool = False) -> None:
        self.name = declaration.check_name(name, "the app")
        self.stores = _check_stores(name, stores)
        self.transport = transports.check_transport_option(name, transport, keys)
        self.keys = keys
        self.reactions: dict[str, ReactionSpec] = {}
        self.schedules: dict[str, ScheduleSpec] = {}
        self.rested: list[tuple[type, ColumnElement[bool]]] = []
        self._place = source_lint.declaration_file_and_line()
        _register_app(self)

    def __repr__(self) -> str:
        return f"<app {self.name}: {len(self.reactions)} reactions>"

    @overload
    def on(
        self,
        record: type[R],
        *clauses: Clause,
        due: Due | Column | None = None,
        occurrence: Sequence[Column] | None = None,
        in_order: InOrder | None = None,
        done_column: Column | None = None,
        retry: Retry | None = None,
        name: str | None = None,
    ) -> _OnDecorator[R]: ...
    @overload
    def on(
        self,
        record: type[R],
        *clauses: Clause,
        call: Call[R, O],
        due: Due | Column | None = None,
        occurrence: Sequence[Column] | None = None,
        in_order: InOrder | None = None,
        per: Column | None = None,
        done_column: Column | None = None,
        overtaken: WhenOvertaken | None = None,
        name: str | None = None,
        key_name: str | tuple[str, str] | None = None,
    ) -> _OnCallDecorator[R, O]: ...
    @overload
    def on(
        self,
        record: type[R],
        *clauses: Clause,
        call: Call[A, O],
        prepare: Callable[Concatenate[R, Q], A],
        due: Due | Column | None = None,
        occurrence: Sequence[Column] | None = None,
        in_order: InOrder | None = None,
        per: Column | None = None,
        done_column: Column | None = None,
        overtaken: WhenOvertaken | None = None,
        name: str | None = None,
        key_name: str | tuple[str, str] | None = None,
    ) -> _OnCallDecorator[R, O]: ...
    @decorator_forms.show_example_on_misuse("@app.on(Order, Order.status == 'placed')")
    def on(  # noqa: PLR0913
        self,
        record: type,
        *clauses: Any,
        call: Call[Any, Any] | None = None,
        prepare: Callable[..., Any] | None = None,
        due: Due | Column | None = None,
        occurrence: Sequence[Column] | None = None,
        in_order: InOrder | None = None,
        per: Column | None = None,
        done_column: Column | None = None,
        overtaken: WhenOvertaken | None = None,
        retry: Retry | None = None,
        name: str | None = None,
        key_name: str | tuple[str, str] | None = None,
    ) -> Any:
        """Declare a reaction, as a decorator of its handler: the handler runs for each record for which all clauses hold, until a commit
        makes a clause false.

        Args:
            record: a mapped class whose table is in one of the app's stores.
            clauses: SQL conditions, all of which must hold.
            call: the call that is made before the handler runs. The handler is given the outcome of the call.
            prepare: a function that makes the call's argument from the record, inside the transaction that begins the attempt. If `prepare`
                raises, the call is not made.
            due: the time from which the condition holds, by the database's clock: a column, or `after(column, timedelta)`.
            occurrence: the columns whose values tell one occurrence (one round of a recurring event) from the next. If this option is left
                out, the due column is used. The option is required if `due` is a column, a call is made and the handler does not write the
                due column. `()` means that there is only one occurrence.
            in_order: `InOrder(by, order)`: records with equal values in the column `by` are carried out one at a time, sorted by `order` if
                that is given.
            per: the column that names the tenant of the external service for this record: `limit_per`, `rate_per` and the pause of a
                failing service apply to each tenant separately. NULL means no tenant.
            done_column: the one column that the handler writes. The condition gets the clause that this column is NULL, so that the
                reaction can run alongside other reactions on the same record.
            overtaken: what to do with an outcome that came too late: the condition no longer holds, or the record has another occurrence.
                "hold": the outcome is held for a person; "same": the ordinary handler writes it, since the call was made; "drop": it is
                logged and not kept. The decorator `@reaction.overtaken` declares a handler for such outcomes instead. Without this option
                and that handler, the ordinary handler is run. If it writes nothing but the done column, its write is kept; otherwise the
                outcome is held, or dropped under `InDoubt.repeat()`.
            retry: when a failed handler is tried again. A reaction with a call takes this from its call.
            name: the name of the reaction, which is a part of each idempotency key; the handler's name if left out.
            key_name: for a reaction that was renamed: the name that it had when its first call was made. This name stays a part of each
                idempotency key. `groundstate rename` keeps it in the database; `key_name` states it in the source code too. If the app was
                renamed as well, give the first name of the app, then that of the reaction: `("shop", "paid")`.

        Raises:
            DeclarationError: the reaction, as declared, would lose or repeat an effect, or never run; the message names the cure.
        """
        if inspect.isroutine(record):
            raise DeclarationError(
                f"on({getattr(record, '__name__', record)}) is given a function for the record, and would declare nothing: write"
                " @app.on(Order, Order.status == 'placed') above it"
            )
        chosen = declaration.ReactionOptions(
            call, prepare, due, occurrence, in_order, per, done_column, overtaken, retry, name, key_name
        )  # fmt: skip
        validate_condition.refuse_python_conditions(f"on({getattr(record, '__name__', record)}, ...)")

        def declare(handler: Any, /) -> Any:
            spec = declaration.make_reaction_spec(self.name, self.stores, record, clauses, chosen, handler)
            self._add_reaction(spec)
            return Plain(spec) if spec.call is None else Reaction(spec)

        return declare

    def every(  # noqa: PLR0913  # each parameter is an option of a schedule
        self,
        cron: str | timedelta,
        *,
        zone: str = "UTC",
        missed: Missed = "latest",
        max_missed: int = 100,
        gap: Gap = "shift",
        fold: Fold = "first",
        retry: Retry | None = None,
        store: Store | None = None,
        name: str | None = None,
    ) -> Callable[[Callable[P, None]], Callable[P, None]]:
        """Declare a schedule, as a decorator of its handler. At each tick (a point in time of the schedule) the handler writes rows.

        The same transaction moves the schedule's cursor, which names the last tick that was carried out or left out.

        The handler may have parameters annotated `session: Session` and `ctx: ReactionContext`; `ctx.due` is the time of the tick, in the
        time zone `zone`. Each tick is carried out once, by one of the workers. Ticks before the first start, or before a change of
        expression, zone or timedelta, are not carried out. If the handler raises, the tick is a failed attempt and is tried again.

        Args:
            cron: a cron expression (see `Cron`), or a timedelta of at least a second: the distance between ticks, counted from the first
                start.
            zone: the time zone of the expression.
            missed: what to do with ticks that came while no worker ran. "latest": the last one is carried out; "none": the last one is
                carried out if it is at most a minute late; "all": the last `max_missed` are carried out, oldest first. Ticks that are left
                out are logged.
            max_missed: the largest number of missed ticks that are carried out with "all".
            gap: what to do with wall-clock times that the clock skips (see `Cron`).
            fold: which of two equal wall-clock times is meant (see `Cron`).
            retry: when a tick that failed is tried again.
            store: the store to which the handler writes; required if the app has several. In a sharded store each shard has its own ticks
                and its own cursor; for one shard only, give `store.shard(name)`.
            name: the name of the schedule; the handler's name if left out. No reaction may have the same name.

        Raises:
            DeclarationError: an option or the handler makes no sense; the message names the cure.
        """
        if callable(cron):
            raise DeclarationError(
                f"every({getattr(cron, '__name__', cron)}) is given a function for the schedule, and would declare nothing: write"
                " @app.every('0 7 * * *') or @app.every(timedelta(hours=1)) above it"
            )

        def declare(handler: Callable[P, None], /) -> Callable[P, None]:
            given = validate_schedule.ScheduleOptions(cron, zone, missed, max_missed, gap, fold, retry, store, name)
            spec = validate_schedule.make_schedule_spec(self.name, self.stores, given, handler)
            self._refuse_if_known_or_running(spec.name)
            self.schedules[spec.name] = spec
            return handler

        return declare

    def at_rest(self, record: type, clause: Clause) -> None:
        """Declare that records need no reaction while the clause holds.

        `groundstate pending --states` lists values of columns that no reaction handles. It leaves out records for which this clause holds.

        Raises:
            DeclarationError: the clause cannot be evaluated on these records.
        """
        mapper = declaration.mapper_of(record)
        what = f"at_rest({mapper.class_.__name__}, ...)"
        validate_condition.refuse_python_conditions(what)
        store = declaration.store_of(self.name, self.stores, mapper)
        rested = _join_by_and(validate_condition.check_clauses(what, mapper, [clause]))
        why = None if store.sqlite_dialect is None else sqlite_pitfalls.reason_to_refuse_expression(rested, store.sqlite_dialect)
        if why is None and store.dialect is not None:
            why = bound_values.reason_to_refuse_expression(rested, store.dialect)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
        self.rested.append((mapper.class_, rested))

    def check_declarations(self) -> None:
        """Check all declarations together, once everything is declared. Each start calls this.

        Raises:
            DeclarationError: a call lacks what its policy needs, or the models do not fit together.
        """
        try:
            configure_mappers()
        except InvalidRequestError as error:
            raise DeclarationError(f"the models do not fit together: {error}") from error
        self._refuse_services_of_one_name()
        for spec in self.reactions.values():
            if spec.call is not None and spec.call.in_doubt.kind == "lookup" and spec.call.lookup is None:
                name = spec.call.function.name
                raise DeclarationError(
                    f"call {name} is settled by InDoubt.lookup(), and has no lookup: declare it with @{name}.lookup, or choose"
                    " InDoubt.hold()"
                )
            if spec.call is not None and spec.call.answers_for and not spec.call.uses_lookup:
                raise DeclarationError(
                    f"call {spec.call.function.name} says answers_for={list(spec.call.answers_for)!r}, and has no lookup that is asked:"
                    f" declare one with @{spec.call.function.name}.lookup, under InDoubt.lookup() or InDoubt.same_key(), or leave"
                    " answers_for out"
                )
            if spec.due is not None and spec.due.valid_for is not None and spec.expired is None:
                raise DeclarationError(
                    f"reaction {spec.name} is valid for {spec.due.valid_for}, and nothing says what becomes of a record after that: declare"
                    f" @{spec.name}.expired, which moves the record on"
                )
            loader_options.check_options_compile(spec)
            declaration.warn_about_unnoticed_changes(spec)
            spec.same_call = tuple(other.name for other in self.reactions.values() if other is not spec and _have_same_call(other, spec))

    def _refuse_services_of_one_name(self) -> None:
        """Refuse two services with the same name and different limits, since calls are counted by the service's name."""
        seen: dict[str, ServiceSpec] = {}
        for spec in self.reactions.values():
            service = None if spec.call is None else spec.call.service
            if service is None:
                continue
            other = seen.setdefault(service.name, service)
            differ = [one for one in _LIMITS if getattr(other, one) != getattr(service, one)]
            if differ:
                said = " and ".join(f"{differ[0]}={getattr(one, differ[0])!r}" for one in (other, service))
                raise DeclarationError(
                    f"two services are named {service.name!r}, with {said}: calls are counted by that name, in all workers together."
                    " Declare one ExternalService and import it where its calls are, or give each a name of its own"
                )

    def _add_reaction(self, spec: ReactionSpec) -> None:
        self._refuse_if_known_or_running(spec.name)
        for other in self.reactions.values():
            if spec.call is not None and other.call is not None and (spec.key_name or spec.name) == (other.key_name or other.name):
                raise DeclarationError(
                    f"reaction {spec.name} would make the keys of reaction {other.name}, and a provider takes the call of one for that of"
                    " the other: key_name= is for the one that had the name when its first call was made"
                )
            if other.record is spec.record and look.are_same_clauses(other.clauses, spec.clauses) and _have_same_due_time(other, spec):
                raise DeclarationError(
                    f"reaction {spec.name} has the same condition as reaction {other.name}, and the first to run takes it from the other:"
                    f" give each a column of its own that says whether it was done, by done_column={spec.record.__name__}.<column>, or do"
                    " both in"
                    " one handler"
                )
            declaration.warn_if_one_implies_other(spec, other)
        self.reactions[spec.name] = spec

    def _refuse_if_known_or_running(self, name: str) -> None:
        if self._has_workers:
            raise DeclarationError(
                f"{name} is declared while App({self.name!r}) runs in this process, which would never carry it out: import the module that"
                " declares it before app.start()"
            )
        for kind, known in (("reaction", self.reactions.get(name)), ("schedule", self.schedules.get(name))):
            if known is not None:
                raise DeclarationError(
                    f"App({self.name!r}) has a {kind} {name!r} already ({known.handler.name}): rename the handler, or give name='...'"
                )


def _have_same_call(one: ReactionSpec, other: ReactionSpec) -> bool:
    """Whether two reactions make the same call of the same service for rows of the same table."""
    if one.kind is None or other.kind is None:
        return False
    return (one.kind.service, one.kind.call, one.table_name) == (other.kind.service, other.kind.call, other.table_name)


def _have_same_due_time(one: ReactionSpec, other: ReactionSpec) -> bool:
    if one.due is None or other.due is None:
        return one.due is other.due
    return one.due.delta == other.due.delta and look.is_same_clause(one.due.base, other.due.base)


def _join_by_and(clauses: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    first, *others = clauses
    for one in others:
        first = first & one
    return first


def _check_stores(name: str, stores: Sequence[Store]) -> tuple[Store, ...]:
    for one in stores:
        if not isinstance(one, Store):
            raise DeclarationError(f"App({name!r}, {one!r}): give stores, as in App({name!r}, Store('sqlite:///{name}.db', Base))")
    if not stores:
        raise DeclarationError(f"App({name!r}) has no store: give one, as in App({name!r}, Store('sqlite:///{name}.db', Base))")
    owned = [metadata for store in stores for metadata in dict.fromkeys(store.metadatas)]
    if len(owned) != len(set(owned)):
        raise DeclarationError(
            f"App({name!r}): two of its stores own the same tables; a class lies in one store: give each a base of its own, or where the"
            " same tables lie in several databases declare them as Store.shards([url, url], Base)"
        )
    named = Counter(part.name for store in stores for part in store.databases if part.name is not None)
    twice = [one for one, count in named.items() if count > 1]
    if twice:
        raise DeclarationError(f"App({name!r}): two of its databases are named {twice[0]!r}: give each a name of its own, by name=")
    return tuple(stores)


def _register_app(app: App) -> None:
    """Register the app by its name. Raises DeclarationError if an app that was declared elsewhere has this name. An app that was declared
    at the same file and line is replaced, since its module was imported again.
    """
    other = _apps.get(app.name)
    if other is not None and other._place != app._place:  # noqa: SLF001 - an attribute of the same class
        del other
        gc.collect()
        other = _apps.get(app.name)
        place = "" if other is None else other._place  # noqa: SLF001 - an attribute of the same class
        if other is not None and place != app._place:  # noqa: SLF001 - an attribute of the same class
            raise DeclarationError(
                f"this process has an App({app.name!r}) already, declared at {place}: keys are made of an app's name, so both"
                " would make the same; give this one another name"
            )
    _apps[app.name] = app
