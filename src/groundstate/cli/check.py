"""`groundstate check`: lists problems, and possible problems, of the app on its databases. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import typer
from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Code,
    DebugOption,
    JsonOption,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    print_json,
    refuse_missing_database,
    store_title,
    warn_if_nothing_declared,
)
from groundstate.engine.operate import check as engine
from groundstate.engine.operate import shard_check
from groundstate.engine.sql.condition_query import ConditionQuery
from groundstate.engine.sql.findings import Finding
from groundstate.store import connect


def check(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - `common.exit_with_code_on_error` reads the option
) -> None:
    """Check the app on its databases: missing indexes (with their DDL), duplicate keys, models without protection against stale writes,
    column types, and groundstate's own tables.

    Ends with exit code 1 if a problem was found, and with 0 if there is only advice.
    """
    found = find_app(app)
    warn_if_nothing_declared(found)
    asked = StoreReader(databases_of(found))
    answers = asked.read_each(lambda store: _check_store(found, store))
    told = [(store.label, store_title(store), findings) for store, findings in answers]
    reached = [store for store, _ in answers]
    told += [(store.label, store.label, _check_across_shards(found, store, reached)) for store in found.stores if len(store.databases) > 1]
    bad = any(one.level == "problem" for _, _, findings in told for one in findings)
    if as_json:
        stores = [{"store": name, "findings": findings} for name, _, findings in told]
        print_json("check", {"app": found.name, "stores": stores, **asked.unusable_stores_json})
    else:
        for _, title, findings in told:
            _print_findings(console(), title, findings)
    asked.report_unreadable()
    raise typer.Exit(Code.FINDINGS if bad else Code.OK)


def _check_store(app: App, store: Store) -> list[Finding]:
    database, _, _ = connect.open_store(store.settings())
    refuse_missing_database(database)
    try:
        return engine.check_database(
            database, [ConditionQuery(spec, database) for spec in reactions_of(app, store)], store.metadatas, schedules_of(app, store)
        )
    finally:
        database.close()


def _check_across_shards(app: App, store: Store, reached: Sequence[Store]) -> list[Finding]:
    """Return problems among the shards of a store, such as shards that give out the same key. Only the shards in `reached` are compared."""
    with ExitStack() as stack:
        shards = {}
        for part in store.databases:
            if part in reached:
                database, _, _ = connect.open_store(part.settings())
                stack.callback(database.close)
                database.connect()
                shards[part.label] = (database, [ConditionQuery(spec, database) for spec in reactions_of(app, part)])
        return shard_check.check_shards(shards)


def _print_findings(out: Console, store: str, findings: list[Finding]) -> None:
    out.print(Text(escape_for_terminal(store), style="bold"), soft_wrap=True)
    for one in findings:
        out.print()
        colour = "red" if one.level == "problem" else "yellow"
        out.print(
            Text.assemble((one.level, colour), f"  {one.kind}, {escape_for_terminal(one.subject)}: {escape_for_terminal(one.words)}"),
            soft_wrap=True,
        )
        if one.cure:
            out.print(Text(f"    {escape_for_terminal(one.cure)}"), soft_wrap=True)
    out.print()
    problems = sum(one.level == "problem" for one in findings)
    counted = f"{problems} {'problem' if problems == 1 else 'problems'}, {_pieces_of_advice_in_words(len(findings) - problems)} of advice."
    out.print(Text(counted if findings else "Nothing was found."))


def _pieces_of_advice_in_words(count: int) -> str:
    return "1 piece" if count == 1 else f"{count} pieces"
