"""`groundstate plan`: shows what this code would do on its databases, before it is deployed. Only reads."""

from __future__ import annotations

from dataclasses import replace

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.cli import pending_tables
from groundstate.cli.common import (
    REFUSED,
    AppOption,
    Code,
    DebugOption,
    JsonOption,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    find_conflict_with_admitted,
    open_store_read_only,
    print_json,
    store_title,
    warn_if_nothing_declared,
)
from groundstate.engine.operate import plan as engine
from groundstate.engine.operate.plan import Plan, Planned
from groundstate.engine.operate.shard_check import AdmittedDatabases
from groundstate.engine.rows import data_restore_check
from groundstate.engine.rows.attempt_text import count_with_noun, describe_record_or_tick
from groundstate.engine.rows.reaction_registry import COUNTED_MAX
from groundstate.engine.sql.condition_query import ConditionQuery

_COLOURS = {"new": "green", "changed": "yellow", "gone": "red", "unchanged": "dim"}
_ORDER = ("new", "changed", "gone", "unchanged")


def plan(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Show what this code would do on this database: which reactions are new, changed or gone, and how many rows each would take now.

    This command only runs SELECTs. It ends with exit code 1 if a person must first decide something or run migrations, and with 0 if not.
    """
    found = find_app(app)
    warn_if_nothing_declared(found)
    asked, admitted = StoreReader(databases_of(found)), AdmittedDatabases()
    plans = asked.read_each(lambda store: _plan_store(found, store, admitted))
    waits = any(one.needs_person for _, one in plans)
    if as_json:
        content = [{"store": store.label, "needs_somebody": one.needs_person, "plan": one} for store, one in plans]
        print_json("plan", {"app": found.name, "needs_somebody": waits, "stores": content, **asked.unusable_stores_json})
    else:
        for store, one in plans:
            _print_plan(console(), found.name, store_title(store), one)
    asked.report_unreadable()
    raise typer.Exit(Code.FINDINGS if waits else Code.OK)


def _plan_store(app: App, store: Store, admitted: AdmittedDatabases) -> Plan:
    """Return the plan for one store. admitted: the databases of the app that were planned before, with which this store's database must not
    conflict.
    """
    with open_store_read_only(store) as (database, liveness):
        queries = [ConditionQuery(spec, database) for spec in reactions_of(app, store)]
        found = engine.build_plan(app.name, database, queries, schedules_of(app, store), liveness)
        why = find_conflict_with_admitted(app, store, database, admitted)
        return found if why is None else replace(found, refused=(*found.refused, why))


def _print_plan(out: Console, app: str, store: str, found: Plan) -> None:
    out.print(Text(escape_for_terminal(store), style="bold"), soft_wrap=True)
    if found.first:
        out.print("No reaction was ever accepted here: this is the first deployment.")
    _print_reactions(out, found)
    _print_schedules(out, found)
    for why in found.refused:
        out.print(Text.assemble((REFUSED, "red"), escape_for_terminal(why)), soft_wrap=True)
    if found.waiting:
        out.print(Text(escape_for_terminal(data_restore_check.waiting_message(found.waiting)), style="yellow"), soft_wrap=True)
    for one in found.reactions:
        if one.lacks:
            out.print(Text.assemble((f"{escape_for_terminal(one.reaction)}: ", "red"), escape_for_terminal(one.lacks)), soft_wrap=True)
        if one.needs:
            does = "carries out only what the accepted condition matches as well," if one.both else "is not started"
            out.print(
                Text.assemble(
                    (f"{escape_for_terminal(one.reaction)} {does} before a person says so: ", "yellow"), escape_for_terminal(one.needs)
                ),
                soft_wrap=True,
            )
        for words in one.would_hold:
            out.print(Text.assemble((f"{escape_for_terminal(one.reaction)}: ", "red"), escape_for_terminal(words)), soft_wrap=True)
        _print_outcomes_not_loaded(out, one)
    for words in found.elsewhere:
        out.print(Text(escape_for_terminal(words), style="red"), soft_wrap=True)
    pending_tables.print_left_by_others(out, app, found.others)
    if not found.needs_person:
        out.print("All of it runs without a decision of a person. `groundstate check` finds missing indexes.")


def _print_outcomes_not_loaded(out: Console, one: Planned) -> None:
    """Print up to `_SHOWN` held outcomes that this version of the application cannot load, each with its record. --json lists all."""
    for held in one.not_loaded[:_SHOWN]:
        where = describe_record_or_tick(held.record, held.occurrence)
        words = f"the outcome held for {where} cannot be given to this code's handler: {held.why}"
        out.print(Text.assemble((f"{escape_for_terminal(one.reaction)}: ", "red"), escape_for_terminal(words)), soft_wrap=True)
    if one.not_loaded:
        more = len(one.not_loaded) - _SHOWN
        others = f"{escape_for_terminal(one.reaction)}: and {more:,} more (--json lists them). " if more > 0 else ""
        out.print(f"{others}{_CURE}", soft_wrap=True)


_SHOWN = 20
_CURE = "Retry them with the code that runs now, let the new type still read them, or settle each with its outcome by hand."


def _print_reactions(out: Console, found: Plan) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("reaction", "", "rows now", "more", "fewer", "condition"):
        table.add_column(title, justify="right" if title in ("rows now", "more", "fewer") else "left", overflow="fold")
    for one in sorted(found.reactions, key=lambda one: (_ORDER.index(one.standing), one.reaction)):
        style = _COLOURS[one.standing]
        rows = "-" if one.standing == "gone" else _count_in_words(one.rows)
        table.add_row(
            escape_for_terminal(one.reaction),
            Text(one.standing, style=style),
            rows,
            _count_in_words(one.more),
            _count_in_words(one.fewer),
            _condition_as_text(one),
        )
    out.print(table)


def _condition_as_text(one: Planned) -> Text:
    if one.standing == "changed":
        return Text.assemble(("was ", "dim"), escape_for_terminal(one.was), "\n", ("is  ", "dim"), escape_for_terminal(one.condition))
    words = escape_for_terminal(one.condition if one.condition is not None else one.was)
    return Text.assemble(
        words,
        (f"\n{count_with_noun(one.open_attempts, 'attempt is', 'attempts are')} open", "red")
        if one.standing == "gone" and one.open_attempts
        else "",
    )


def _print_schedules(out: Console, found: Plan) -> None:
    if not found.schedules:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("schedule", "", "says"):
        table.add_column(title, overflow="fold")
    for one in found.schedules:
        said = Text.assemble(("was ", "dim"), escape_for_terminal(one.was), "\n", ("is  ", "dim"), escape_for_terminal(one.words))
        changed = one.standing == "changed"
        words = said if changed else Text(escape_for_terminal(one.words if one.words is not None else one.was))
        table.add_row(escape_for_terminal(one.schedule), Text(one.standing, style=_COLOURS[one.standing]), words)
    out.print(table)


def _count_in_words(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count:,}+" if count >= COUNTED_MAX else f"{count:,}"
