"""`groundstate check`: what is wrong, or might be. Changes nothing; ends with 1 where a problem was found, and not for advice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import typer
from rich.console import Console
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Asked,
    Code,
    DebugOption,
    JsonOption,
    console,
    find_app,
    plain,
    refuse_missing,
    say_json,
    tell_of_an_empty,
    title_of,
)
from groundstate.engine import apart
from groundstate.engine import check as engine
from groundstate.engine.check import Finding
from groundstate.engine.question import Question
from groundstate.store import opening


def check(
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Missing indexes with their DDL, keys that come twice, models without protection, column types, our own tables.

    Ends with 1 where a problem was found; advice alone ends with 0.
    """
    found = find_app(app)
    tell_of_an_empty(found)
    asked = Asked(found.parts)
    answers = asked.each(lambda store: _ask(found, store))
    told = [(store.label, title_of(store), findings) for store, findings in answers]
    reached = [store for store, _ in answers]
    told += [(store.label, store.label, _between(found, store, reached)) for store in found.stores if len(store.parts) > 1]
    bad = any(one.level == "problem" for _, _, findings in told for one in findings)
    if as_json:
        stores = [{"store": name, "findings": findings} for name, _, findings in told]
        say_json("check", {"app": found.name, "stores": stores, **asked.said})
    else:
        for _, title, findings in told:
            _show(console(), title, findings)
    asked.end()
    raise typer.Exit(Code.FINDINGS if bad else Code.OK)


def _ask(app: App, store: Store) -> list[Finding]:
    database, _, _ = opening.open_store(store.settings())
    refuse_missing(database)
    try:
        return engine.check(
            database, [Question(spec, database) for spec in app.reactions_of(store)], store.metadatas, app.schedules_of(store)
        )
    finally:
        database.close()


def _between(app: App, store: Store, reached: Sequence[Store]) -> list[Finding]:
    """What is wrong between the shards of a store, of those that could be asked."""
    with ExitStack() as stack:
        shards = {}
        for part in store.parts:
            if part in reached:
                database, _, _ = opening.open_store(part.settings())
                stack.callback(database.close)
                database.connect()
                shards[part.label] = (database, [Question(spec, database) for spec in app.reactions_of(part)])
        return apart.check(shards)


def _show(out: Console, store: str, findings: list[Finding]) -> None:
    out.print(Text(plain(store), style="bold"), soft_wrap=True)
    for one in findings:
        out.print()
        colour = "red" if one.level == "problem" else "yellow"
        out.print(Text.assemble((one.level, colour), f"  {one.kind}, {plain(one.subject)}: {plain(one.words)}"), soft_wrap=True)
        if one.cure:
            out.print(Text(f"    {plain(one.cure)}"), soft_wrap=True)
    out.print()
    problems = sum(one.level == "problem" for one in findings)
    counted = f"{problems} {'problem' if problems == 1 else 'problems'}, {_pieces(len(findings) - problems)} of advice."
    out.print(Text(counted if findings else "Nothing was found."))


def _pieces(count: int) -> str:
    return "1 piece" if count == 1 else f"{count} pieces"
