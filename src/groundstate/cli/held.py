"""`groundstate held`: lists held attempts, as a table, in full, or as JSON. Only reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.cli import pending_tables
from groundstate.cli.common import (
    AppOption,
    CommandFailed,
    DebugOption,
    JsonOption,
    StoreOption,
    StoreReader,
    choose_stores,
    console,
    escape_for_terminal,
    find_app,
    format_time_for_people,
    open_store_read_only,
    print_json,
    refuse_unstorable_text,
)
from groundstate.clock import SYSTEM_CLOCK, Clock
from groundstate.engine.operate import held as listing
from groundstate.engine.operate import left_by_other_apps
from groundstate.engine.operate.held import Cursor, Filter, Held, Page
from groundstate.engine.operate.left_by_other_apps import LeftByOther
from groundstate.engine.rows.attempt_text import count_with_noun, describe_record_or_tick
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.rules.schedule import ScheduleSpec


def stores_that_may_hold(app: App, reaction: str | None) -> list[Store]:
    """Return the stores in which attempts of a reaction can be: its own store, or all stores if this version of the application does not
    declare it.
    """
    name = reaction or ""
    spec = app.reactions.get(name) or app.schedules.get(name)
    return list(spec.store.databases) if spec is not None else list(databases_of(app))


@dataclass
class _HeldAttempts:
    held: list[tuple[str, Held]] = field(default_factory=list)
    total: int = 0
    baselines: int = 0
    more: str | None = None
    others: list[tuple[str, LeftByOther]] = field(default_factory=list)


def held(  # noqa: PLR0913  # each parameter is an option of the command
    *,
    reaction: Annotated[str | None, typer.Option("--reaction", metavar="NAME", help="Only attempts of this reaction.")] = None,
    record: Annotated[str | None, typer.Option("--record", metavar="PK", help="Only attempts on this record.")] = None,
    unsure: Annotated[
        bool | None,
        typer.Option("--unsure/--sure", help="Only those for which it is unknown / known whether the call was made.", show_default=False),
    ] = None,
    with_outcome: Annotated[
        bool | None,
        typer.Option("--with-outcome/--without-outcome", help="Only those whose outcome is known / unknown.", show_default=False),
    ] = None,
    why: Annotated[str | None, typer.Option("--why", metavar="WORDS", help="Only those with these words in the reason or error.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Only rows that were left out when a reaction was new.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many are listed at most.")] = listing.PAGE,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="The next page: the cursor that the last page ended with.")
    ] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show everything about each: key, error, outcome.")] = False,
    only: StoreOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """List the attempts that wait for a person: why, whether the call may have been made, and what can be done.

    This command only reads.
    """
    the_app = find_app(app)
    which = Filter(reaction, record, unsure, with_outcome, why, baseline)
    asked = StoreReader(choose_stores(stores_that_may_hold(the_app, reaction), only))
    listed = _list_held(the_app, asked, which, _parse_cursor(after), limit)
    if as_json:
        shown = [{"store": store, **asdict(one)} for store, one in listed.held]
        others = [{"store": store, **asdict(one)} for store, one in listed.others]
        counts = {"total": listed.total, "baselines": listed.baselines, "more": listed.more}
        print_json("held", {"held": shown, **counts, "others": others, **asked.unusable_stores_json})
    else:
        _print_held(listed, which, long=long)
        pending_tables.print_left_by_others(console(), the_app.name, [one for _, one in listed.others])
    asked.report_unreadable()


def _parse_cursor(written: str | None) -> tuple[int, Cursor] | None:
    if written is None:
        return None
    try:
        number, reaction, record, occurrence = json.loads(written)
        place = (str(reaction), str(record), str(occurrence))
        refuse_unstorable_text("after", place)
        return int(number), place
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        shown = written if len(written) < 80 else f"{written[:80]}..."
        raise CommandFailed(f"--after {shown!r} is no cursor: give the cursor that the last page ended with") from None


def _list_held(app: App, asked: StoreReader, which: Filter, cursor: tuple[int, Cursor] | None, limit: int) -> _HeldAttempts:
    listed = _HeldAttempts()

    def list_store(store: Store) -> None:
        number = asked.stores.index(store)
        room = limit - len(listed.held)
        passed = cursor is not None and number < cursor[0]
        with open_store_read_only(store) as (database, liveness):
            database.connect()
            declared: dict[str, ConditionQuery | ScheduleSpec] = {
                spec.name: ConditionQuery(spec, database) for spec in reactions_of(app, store)
            }
            declared |= {spec.name: spec for spec in schedules_of(app, store)}
            if cursor is None and which == Filter():
                queries = [one for one in declared.values() if isinstance(one, ConditionQuery)]
                with database.reading() as connection:
                    found = left_by_other_apps.find_left_by_others(app.name, database, connection, queries, liveness)
                listed.others += [(store.label, one) for one in found]
            after = cursor[1] if cursor is not None and number == cursor[0] else None
            page = listing.read_held_page(app.name, database, declared, which, after=after, limit=0 if passed else room)
        _add_page(listed, page, store.label, number, last=after, passed=passed)

    asked.read_each(list_store)
    return listed


def _add_page(listed: _HeldAttempts, page: Page, store: str, number: int, *, last: Cursor | None, passed: bool) -> None:
    listed.held += [(store, one) for one in page.held]
    listed.total += page.total
    listed.baselines += page.baselines
    if listed.more is None and not passed and (page.more is not None or (not page.held and page.left)):
        listed.more = json.dumps([number, *(page.more or last or ("", "", ""))])


def _print_held(listed: _HeldAttempts, which: Filter, *, long: bool) -> None:
    out = console()
    if not listed.held:
        out.print("Nothing is held." if which == Filter() else "Nothing is held that matches.")
    elif long:
        for store, one in listed.held:
            _print_attempt(out, store, one)
    else:
        pending_tables.print_table(out, _make_held_table(listed))
    if listed.held:
        hidden = "" if long else "  --long shows keys, errors and outcomes."
        out.print(f"{len(listed.held):,} of {listed.total:,} held.{hidden}")
    if listed.more is not None:
        out.print(f"The next page: groundstate held --after '{escape_for_terminal(listed.more)}'", soft_wrap=True)
    if listed.baselines and not which.baseline:
        out.print(f"{count_with_noun(listed.baselines, 'row is', 'rows are')} left out as baseline: --baseline lists them.")


def _make_held_table(listed: _HeldAttempts) -> Table:
    table = pending_tables.make_table("reaction", "record", "held because", "call", "begun", "you can")
    for _, one in listed.held:
        record = describe_record_or_tick(one.record, one.occurrence)
        since = format_time_for_people(one.since)
        table.add_row(
            escape_for_terminal(one.reaction),
            escape_for_terminal(record),
            escape_for_terminal(pending_tables.shorten(one.why)),
            _call_in_words(one),
            since,
            ", ".join(one.can) or "-",
        )
    return table


def _call_in_words(one: Held) -> str:
    if one.outcome is not None:
        return "outcome in hand"
    return "may be made" if one.unsure else "not made" if one.key is not None else "-"


def _print_attempt(out: Console, store: str, one: Held, clock: Clock = SYSTEM_CLOCK) -> None:
    now = datetime.fromtimestamp(clock.wall(), UTC)
    lines = [
        ("record", f"{one.table or '?'} {one.record}" if one.record else None),
        ("occurrence" if one.record else "tick", one.occurrence),
        ("why", one.why),
        ("error", one.error if one.error != one.why else None),
        ("call", _call_in_words(one)),
        ("outcome", one.outcome),
        ("key", one.key),
        ("begun", f"first at {format_time_for_people(one.since, now)}, calls {one.calls}, failures {one.failures}"),
        ("absent", f"can be believed from {format_time_for_people(one.absent_from, now)}" if one.absent_from is not None else None),
        ("you can", ", ".join(one.can) or "wait until its call can no longer be on its way"),
        ("store", store),
    ]
    out.print(escape_for_terminal(one.reaction), style="bold")
    for name, words in lines:
        if words:
            out.print(f"  {name:<10} {escape_for_terminal(words)}", soft_wrap=True)
