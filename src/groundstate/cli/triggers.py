"""`groundstate triggers`: shows, installs or removes PostgreSQL triggers that send hints for rows that other programs write."""

from __future__ import annotations

import enum
from typing import Annotated

import typer
from rich.table import Table as Shown
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Code,
    CommandFailed,
    DebugOption,
    JsonOption,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    print_json,
    refuse_missing_database,
)
from groundstate.engine.operate import triggers as engine
from groundstate.engine.operate.triggers import TableTrigger
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.store import connect

_COLOURS = {"installed": "green", "missing": "", "stale": "yellow", "needless": "yellow"}
_MEANS = {
    "installed": "a hint is sent when another program commits a change",
    "missing": "what other programs write is found by the sweep",
    "stale": "of another version, edited or switched off: install again",
    "needless": "no reaction of this app reads the table: remove, then install",
}


class Action(enum.StrEnum):
    """What `groundstate triggers` is to do."""

    SHOW = "show"
    INSTALL = "install"
    REMOVE = "remove"


def triggers(
    action: Annotated[Action, typer.Argument(help="Show the triggers, install them, or remove them.")] = Action.SHOW,
    app: AppOption = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements for a migration, and change nothing.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Show, install or remove triggers that send a hint to the workers when another program commits a change, on PostgreSQL.

    They are statement-level triggers on the tables that conditions read. A hint names the table and carries no data. SQLite needs no
    triggers.
    """
    found = find_app(app)
    stores = [store for store in databases_of(found) if store.settings().url.get_backend_name() == "postgresql"]
    if not stores:
        raise CommandFailed(
            f"{found.name} has no store on PostgreSQL: SQLite needs no triggers, since PRAGMA data_version shows that another process wrote"
        )
    asked = StoreReader(stores)
    told = [(store.label, *one) for store, one in asked.read_each(lambda store: _carry_out(found, store, action, sql=sql))]
    if as_json:
        content = [{"store": name, "statements": statements, "tables": seen} for name, statements, seen in told]
        print_json("triggers", {"app": found.name, "action": action, "stores": content, **asked.unusable_stores_json})
    else:
        for name, statements, seen in told:
            _print_triggers(name, statements if sql else [], seen)
    asked.report_unreadable()
    if action is Action.SHOW and any(one.state == "stale" for _, _, seen in told for one in seen):
        raise typer.Exit(Code.FINDINGS)


def _carry_out(app: App, store: Store, action: Action, *, sql: bool) -> tuple[list[str], list[TableTrigger]]:
    """Run the statements of the action, but not if `sql` is True. Then read the state of each table's trigger.

    Return a pair: the statements, and these states.
    """
    database, _, _ = connect.open_store(store.settings())
    refuse_missing_database(database)
    try:
        wanted = engine.tables_read([ConditionQuery(spec, database) for spec in reactions_of(app, store)])
        statements: list[str] = []
        if action is Action.INSTALL:
            statements = engine.install_statements(app.name, database, wanted)
        elif action is Action.REMOVE:
            with database.reading() as connection:
                statements = engine.removal_statements(app.name, connection)
        if not sql:
            engine.run_statements(database, statements)
        with database.reading() as connection:
            return statements, engine.read_triggers(app.name, database, connection, wanted)
    finally:
        database.close()


def _print_triggers(store: str, statements: list[str], seen: list[TableTrigger]) -> None:
    out = console()
    if statements:
        for statement in statements:
            print(f"{statement};")
        return
    out.print(Text(escape_for_terminal(store), style="bold"), soft_wrap=True)
    table = Shown(box=None, pad_edge=False)
    for title in ("table", "trigger", ""):
        table.add_column(title)
    for one in seen:
        table.add_row(escape_for_terminal(one.table), Text(one.state, style=_COLOURS[one.state]), _MEANS[one.state])
    out.print(table)
    for one in seen:
        for words in one.unheard:
            out.print(Text(escape_for_terminal(f"{one.table}: {words}"), style="yellow"), soft_wrap=True)
