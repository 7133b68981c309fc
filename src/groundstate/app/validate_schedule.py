"""Checks the arguments of `App.every` and the signature of the handler, and makes a ScheduleSpec. Raises DeclarationError with the cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from groundstate.app import declaration, signature
from groundstate.app.reaction import IN_TRANSACTION, read_handler
from groundstate.app.store import Store
from groundstate.rules.cron import Cron
from groundstate.rules.policy import Retry
from groundstate.rules.schedule import Period, ScheduleSpec, Timing
from groundstate.values.errors import DeclarationError

SHORTEST = timedelta(seconds=1)  # the shortest time between two ticks of a schedule
_MISSED = ("none", "latest", "all")


@dataclass(frozen=True)
class ScheduleOptions:
    """The options of `App.every`, without the handler."""

    cron: Any
    zone: Any = "UTC"
    missed: Any = "latest"
    max_missed: Any = 100
    gap: Any = "shift"
    fold: Any = "first"
    retry: Any = None
    store: Any = None
    name: Any = None


def make_schedule_spec(app: str, stores: Sequence[Store], given: ScheduleOptions, handler: Any) -> ScheduleSpec:
    """Return the spec of a schedule. Raises DeclarationError if an option or the handler cannot be used."""
    named = signature.function_name(handler, "the handler") if given.name is None else given.name
    name = declaration.check_name(named, "the schedule")
    what = f"schedule {name}"
    timing = _make_timing(what, given)
    if given.missed not in _MISSED:
        raise DeclarationError(f"{what}: missed={given.missed!r}: choose {' or '.join(map(repr, _MISSED))}")
    if type(given.max_missed) is not int or given.max_missed < 1:
        raise DeclarationError(
            f"{what}: max_missed={given.max_missed!r}: at least 1 missed tick is carried out; for none choose missed='none'"
        )
    if given.retry is not None and not isinstance(given.retry, Retry):
        raise DeclarationError(f"{what}: retry={given.retry!r}: give a Retry(...)")
    return ScheduleSpec(
        app=app,
        name=name,
        timing=timing,
        handler=_read_handler_of_schedule(what, handler),
        missed=given.missed,
        max_missed=given.max_missed,
        retry=given.retry or Retry(),
        store=_check_store(what, app, stores, given.store),
    )


def _make_timing(what: str, given: ScheduleOptions) -> Timing:
    if not isinstance(given.cron, timedelta):
        try:
            return Cron(given.cron, given.zone, given.gap, given.fold)
        except DeclarationError as error:
            raise DeclarationError(f"{what}: {error}") from None
    if given.cron < SHORTEST:
        raise DeclarationError(f"{what}: every {given.cron.total_seconds():g} s: a second is the shortest distance between two ticks")
    asked = [name for name, usual in (("zone", "UTC"), ("gap", "shift"), ("fold", "first")) if getattr(given, name) != usual]
    if asked:
        raise DeclarationError(f"{what}: {asked[0]}= is for a cron expression: ticks of a timedelta do not depend on a time zone")
    return Period(given.cron)


def _read_handler_of_schedule(what: str, handler: Any) -> Any:
    try:
        return read_handler(handler, f"{what}: its handler", (), IN_TRANSACTION).function
    except DeclarationError as error:
        if "nobody supplies" not in str(error):
            raise
        raise DeclarationError(f"{error}. A tick has no record: the handler queries the rows that it needs by its session") from None


def _check_store(what: str, app: str, stores: Sequence[Store], given: Any) -> Store:
    if given is None:
        if len(stores) > 1:
            raise DeclarationError(f"{what}: App({app!r}) has {len(stores)} stores: say by store= to which one the handler writes")
        return stores[0]
    if not any(given is store or given in store.databases for store in stores):
        raise DeclarationError(f"{what}: store={given!r} is none of the stores of App({app!r})")
    return given  # type: ignore[no-any-return]  # the check above has shown that it is a Store
