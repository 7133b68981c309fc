"""The app: its stores, and the reactions declared on records in them. Declares and checks."""

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

from groundstate.app import condition, declaration, every, source, telling
from groundstate.app.outside import Call
from groundstate.app.reaction import Plain, Reaction
from groundstate.app.running import Running
from groundstate.app.store import Store
from groundstate.rules import clause as look
from groundstate.rules import miscomputed
from groundstate.rules.cron import Gap, Overlap
from groundstate.rules.due import Due
from groundstate.rules.order import InOrder
from groundstate.rules.overtaken import WhenOvertaken
from groundstate.rules.policy import Retry
from groundstate.rules.reaction import OutsideSpec, ReactionSpec
from groundstate.rules.schedule import Missed, ScheduleSpec
from groundstate.values.errors import DeclarationError

R = TypeVar("R")  # the record
A = TypeVar("A")  # what a call takes
O = TypeVar("O")  # its outcome  # noqa: E741 - as R and P in the other signatures
P = ParamSpec("P")  # what is supplied to the handler by annotation
Q = ParamSpec("Q")  # the same of `sends`
RC = TypeVar("RC")
OC = TypeVar("OC")

Column = SQLCoreOperations[Any]  # and not InstrumentedAttribute: SQLModel's col() works too
Clause = SQLCoreOperations[bool]  # and not bool: it would let `Order.mailed_at is None` through

_LIMITS = ("limit", "rate", "limit_per", "rate_per")
_apps: weakref.WeakValueDictionary[str, App] = weakref.WeakValueDictionary()


class _On(Protocol[RC]):
    def __call__(self, handler: Callable[Concatenate[RC, P], None], /) -> Plain[RC, P]: ...


class _OnCall(Protocol[RC, OC]):
    def __call__(self, handler: Callable[Concatenate[RC, OC, P], None], /) -> Reaction[RC, OC, P]: ...


class App(Running):
    """The reactions of one application, by name, and the stores that its records lie in.

    The name is part of each call's key: with another name, an app's calls have other keys.

    Args:
        name: of the app.
        stores: the databases that its records lie in.
        transport: the URL of what carries hints between its processes, or a function that returns it, called at the start: `nats://...`,
            `redis://...`, `amqp://...`, `postgresql://...`, or `memory:` for hints within this process alone. Each PostgreSQL store
            carries its own where nothing is said.
        keys: whether hints name records too. Primary keys can be secrets; without them a hint costs one more look.

    Raises:
        DeclarationError: another app of this process has the name, or two stores own the same tables.
    """

    def __init__(self, name: str, *stores: Store, transport: str | Callable[[], str] | None = None, keys: bool = False) -> None:
        self.name = declaration.checked_name(name, "the app")
        self.stores = _checked_stores(name, stores)
        self.transport = telling.checked(name, transport, keys)
        self.keys = keys
        self.reactions: dict[str, ReactionSpec] = {}
        self.schedules: dict[str, ScheduleSpec] = {}
        self.rested: list[tuple[type, ColumnElement[bool]]] = []
        self._place = source.place()
        _register(self)

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
        fact: Column | None = None,
        retry: Retry | None = None,
        name: str | None = None,
    ) -> _On[R]: ...
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
        fact: Column | None = None,
        overtaken: WhenOvertaken | None = None,
        name: str | None = None,
        key_name: str | tuple[str, str] | None = None,
    ) -> _OnCall[R, O]: ...
    @overload
    def on(
        self,
        record: type[R],
        *clauses: Clause,
        call: Call[A, O],
        sends: Callable[Concatenate[R, Q], A],
        due: Due | Column | None = None,
        occurrence: Sequence[Column] | None = None,
        in_order: InOrder | None = None,
        per: Column | None = None,
        fact: Column | None = None,
        overtaken: WhenOvertaken | None = None,
        name: str | None = None,
        key_name: str | tuple[str, str] | None = None,
    ) -> _OnCall[R, O]: ...
    def on(self, record: type, *clauses: Any, **given: Any) -> Any:
        """Answers the event 'the clauses hold for a record' until a commit makes one of them false.

        Args:
            record: a mapped class that lies in one of the app's stores.
            clauses: SQL conditions, all of which must hold.
            given: the options of this reaction, by name:
                call: made before the handler, which is given its outcome.
                sends: makes the call's argument from the record, inside the begin transaction; what it raises was surely not done.
                due: from when on the condition holds, by the database's clock: a column, or `after(column, timedelta)`.
                occurrence: columns that tell one round of this event from the next; the due column where nothing is said. To be said
                    where `due` is a column, a call is made and the handler does not write that column; `()`: there is one round for ever.
                in_order: one at a time for equal values of a column, and in which order: `InOrder(by, order)`.
                per: the column that tells the part of the outside that this record talks to, such as its tenant: `limit_per`, `rate_per`
                    and the pause of an endpoint that fails are for each of its values. NULL: no part of it.
                fact: the one column that the handler writes: 'fact is NULL' joins the clauses, and it runs alongside other reactions.
                overtaken: what an outcome means that came when the condition or the occurrence no longer held. "hold": a person decides;
                    "same": what was done was done, and the handler writes it; "drop": a line in the log, and nothing stands of it. Or a
                    handler of its own, `@reaction.overtaken`. Where nothing is said, a handler that writes nothing but a fact is kept,
                    and any other outcome is held; under `again()` it is dropped.
                retry: when a handler that failed is tried again; of a reaction with a call, its call says so.
                name: the handler's name where it is not given. Keys are made of it.
                key_name: the name that keys are made of, where the reaction had another one when its first call was made: then the code
                    says what a rename left in the database. `("shop", "paid")` where the app had another name too.

        Raises:
            DeclarationError: declared so, it would lose or double something, or never run; the message names the cure.
        """
        if inspect.isroutine(record):
            raise DeclarationError(
                f"on({getattr(record, '__name__', record)}) is given a function for the record, and would declare nothing: write"
                " @app.on(Order, Order.status == 'placed') above it"
            )
        unknown = sorted(set(given) - set(declaration.Given.__dataclass_fields__))
        if unknown:
            known = ", ".join(f"{one}=" for one in declaration.Given.__dataclass_fields__)
            raise DeclarationError(f"on({getattr(record, '__name__', record)}, ...) has no option {unknown[0]}=: there are {known}")
        chosen = declaration.Given(**given)
        condition.check_source(f"on({getattr(record, '__name__', record)}, ...)")

        def declare(handler: Any, /) -> Any:
            spec = declaration.reaction(self.name, self.stores, record, clauses, chosen, handler)
            self._add(spec)
            return Plain(spec) if spec.call is None else Reaction(spec)

        return declare

    def every(  # noqa: PLR0913  # each is a choice of its own
        self,
        cron: str | timedelta,
        *,
        zone: str = "UTC",
        missed: Missed = "latest",
        most: int = 100,
        gap: Gap = "shift",
        overlap: Overlap = "first",
        retry: Retry | None = None,
        store: Store | None = None,
        name: str | None = None,
    ) -> Callable[[Callable[P, None]], Callable[P, None]]:
        """Declares what writes rows at each tick of a schedule, in one transaction with the mark that it did.

        The handler takes `session: Session` and `at: Moment`, by annotation; `at.due` is the tick, in the zone. A tick is carried out once,
        by one worker of all. What lies before the first start, or before a change of expression, zone or timedelta, is not carried out. A
        tick whose handler raises is a failed attempt, and is tried again.

        Args:
            cron: a cron expression (see `Cron`), or a timedelta of a second or more, whose ticks lie so far apart from the first start on.
            zone: in which the expression is meant.
            missed: what becomes of ticks that came while no worker ran. "latest": the last one is carried out; "none": that one, if it is
                at most a minute late; "all": the last `most`, oldest first. What is left out is a line in the log.
            most: how many, with "all".
            gap: what becomes of wall times that the clock skips (see `Cron`).
            overlap: which one is meant of wall times that the clock shows twice (see `Cron`).
            retry: when a tick that failed is tried again.
            store: in which it writes; to be given where the app has several. Of a sharded store each shard has its own ticks and its own
                mark; for one alone give `store.shard(name)`.
            name: the handler's name where it is not given. One that no reaction has.

        Raises:
            DeclarationError: that cannot be meant; the message names the cure.
        """
        if callable(cron):
            raise DeclarationError(
                f"every({getattr(cron, '__name__', cron)}) is given a function for the schedule, and would declare nothing: write"
                " @app.every('0 7 * * *') or @app.every(timedelta(hours=1)) above it"
            )

        def declare(handler: Callable[P, None], /) -> Callable[P, None]:
            given = every.Given(cron, zone, missed, most, gap, overlap, retry, store, name)
            spec = every.schedule(self.name, self.stores, given, handler)
            self._check_new(spec.name)
            self.schedules[spec.name] = spec
            return handler

        return declare

    def rests(self, record: type, clause: Clause) -> None:
        """Declares that records for which the clause holds are at rest: `pending` does not list their states as unanswered.

        Raises:
            DeclarationError: the clause cannot be asked of these records.
        """
        mapper = declaration.mapper_of(record)
        what = f"rests({mapper.class_.__name__}, ...)"
        condition.check_source(what)
        store = declaration.store_of(self.name, self.stores, mapper)
        rested = _joined(condition.clauses_of(what, mapper, [clause]))
        why = None if store.sqlite_dialect is None else miscomputed.refused(rested, store.sqlite_dialect)
        if why is not None:
            raise DeclarationError(f"{what}: {why}")
        self.rested.append((mapper.class_, rested))

    def check_declarations(self) -> None:
        """Checks what can be known only when everything is declared; called at each start.

        Raises:
            DeclarationError: a call lacks what its policy needs, or the models do not fit together.
        """
        try:
            configure_mappers()
        except InvalidRequestError as error:
            raise DeclarationError(f"the models do not fit together: {error}") from error
        self._check_outsides()
        for spec in self.reactions.values():
            if spec.call is not None and spec.call.in_doubt.kind == "ask" and spec.call.find is None:
                name = spec.call.function.name
                raise DeclarationError(f"call {name} is settled by ask(), and has no find: declare it with @{name}.find, or choose hold()")
            if spec.call is not None and spec.call.answers_for and not spec.call.asks_its_find:
                raise DeclarationError(
                    f"call {spec.call.function.name} says answers_for={list(spec.call.answers_for)!r}, and has no find that is asked:"
                    f" declare one with @{spec.call.function.name}.find, under ask() or same_key(), or leave answers_for out"
                )
            if spec.due is not None and spec.due.valid_for is not None and spec.expired is None:
                raise DeclarationError(
                    f"reaction {spec.name} is valid for {spec.due.valid_for}, and nothing says what becomes of a record after that: declare"
                    f" @{spec.name}.expired, which moves the record on"
                )
            declaration.warn_when_configured(spec)
            spec.same_call = tuple(other.name for other in self.reactions.values() if other is not spec and _calls_alike(other, spec))

    def _check_outsides(self) -> None:
        """What is counted in all workers together is counted by the outside's name: two of one name would each count the other's calls."""
        seen: dict[str, OutsideSpec] = {}
        for spec in self.reactions.values():
            outside = None if spec.call is None else spec.call.outside
            if outside is None:
                continue
            other = seen.setdefault(outside.name, outside)
            differ = [one for one in _LIMITS if getattr(other, one) != getattr(outside, one)]
            if differ:
                said = " and ".join(f"{differ[0]}={getattr(one, differ[0])!r}" for one in (other, outside))
                raise DeclarationError(
                    f"two outsides are named {outside.name!r}, with {said}: calls are counted by that name, in all workers together."
                    " Declare one Outside and import it where its calls are, or give each a name of its own"
                )

    def _add(self, spec: ReactionSpec) -> None:
        self._check_new(spec.name)
        for other in self.reactions.values():
            if spec.call is not None and other.call is not None and (spec.key_name or spec.name) == (other.key_name or other.name):
                raise DeclarationError(
                    f"reaction {spec.name} would make the keys of reaction {other.name}, and a provider takes the call of one for that of"
                    " the other: key_name= is for the one that had the name when its first call was made"
                )
            if other.record is spec.record and look.same_all(other.clauses, spec.clauses) and _due_alike(other, spec):
                raise DeclarationError(
                    f"reaction {spec.name} has the same condition as reaction {other.name}, and the first to run takes it from the other:"
                    f" give each a column of its own that says whether it was done, by fact={spec.record.__name__}.<column>, or do both in"
                    " one handler"
                )
            declaration.warn_of_another(spec, other)
        self.reactions[spec.name] = spec

    def _check_new(self, name: str) -> None:
        if self._carries_out:
            raise DeclarationError(
                f"{name} is declared while App({self.name!r}) runs in this process, which would never carry it out: import the module that"
                " declares it before app.start()"
            )
        for kind, known in (("reaction", self.reactions.get(name)), ("schedule", self.schedules.get(name))):
            if known is not None:
                raise DeclarationError(
                    f"App({self.name!r}) has a {kind} {name!r} already ({known.handler.name}): rename the handler, or give name='...'"
                )


def _calls_alike(one: ReactionSpec, other: ReactionSpec) -> bool:
    """Whether they make the same call on rows of the same table."""
    if one.kind is None or other.kind is None:
        return False
    return (one.kind.service, one.kind.call, one.table_name) == (other.kind.service, other.kind.call, other.table_name)


def _due_alike(one: ReactionSpec, other: ReactionSpec) -> bool:
    if one.due is None or other.due is None:
        return one.due is other.due
    return one.due.delta == other.due.delta and look.same(one.due.base, other.due.base)


def _joined(clauses: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    first, *others = clauses
    for one in others:
        first = first & one
    return first


def _checked_stores(name: str, stores: Sequence[Store]) -> tuple[Store, ...]:
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
    named = Counter(part.name for store in stores for part in store.parts if part.name is not None)
    twice = [one for one, count in named.items() if count > 1]
    if twice:
        raise DeclarationError(f"App({name!r}): two of its databases are named {twice[0]!r}: give each a name of its own, by name=")
    return tuple(stores)


def _register(app: App) -> None:
    """Refuses a second living app of the name; the same place declared again is a module imported again, and replaces it."""
    other = _apps.get(app.name)
    if other is not None and other._place != app._place:  # noqa: SLF001 - of this class
        del other
        gc.collect()
        other = _apps.get(app.name)
        place = "" if other is None else other._place  # noqa: SLF001 - of this class
        if other is not None and place != app._place:  # noqa: SLF001 - of this class
            raise DeclarationError(
                f"this process has an App({app.name!r}) already, declared at {place}: keys are made of an app's name, so both"
                " would make the same; give this one another name"
            )
    _apps[app.name] = app
