"""The commands `retry`, `settle`, `forget`, `trust` and `rename`: they pass on what a person decides, and decide nothing themselves."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from groundstate.app.app import App
from groundstate.app.declared import databases_of, reactions_of, schedules_of, tables_elsewhere
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Code,
    CommandFailed,
    DebugOption,
    JsonOption,
    StoreOption,
    StoreReader,
    chosen,
    console,
    escape_for_terminal,
    find_app,
    open_store_read_only,
    say_json,
)
from groundstate.cli.held import held, stores_of
from groundstate.engine.operate import actions, renaming
from groundstate.engine.operate.action import ActionResult, Person
from groundstate.engine.rows.attempt_text import counted, on_what
from groundstate.engine.sql import transaction
from groundstate.values.errors import ConflictError, NotFoundError

__all__ = ["forget", "held", "rename", "retry", "settle", "trust"]

T = TypeVar("T")
SAID_MAX = 10  # refusals: at most this many are printed after an act on many attempts
SAID_JSON_MAX = 1000  # refusals that --json lists at most

ByOption = Annotated[str | None, typer.Option("--by", metavar="WHO", help="Who says so, for the log; else the operating system's user.")]
OccurrenceOption = Annotated[str | None, typer.Option("--occurrence", metavar="TEXT", help="Which round, where the record has several.")]
ReactionArgument = Annotated[str | None, typer.Argument(metavar="[REACTION]", show_default=False, help="The reaction's name.")]
RecordArgument = Annotated[
    str | None, typer.Argument(metavar="[PK]", show_default=False, help="The record's primary key; of several columns a JSON array.")
]
ReactionOption = Annotated[str | None, typer.Option("--reaction", metavar="NAME", help="With --all: of which reaction.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every held attempt of --reaction NAME.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="With --all: do not ask first.")]


@contextmanager
def _acting(app: App, store: Store, by: str | None) -> Iterator[Person]:
    with open_store_read_only(store) as (database, liveness):
        transaction.refuse_tables_of_other_stores(database, tables_elsewhere(app, store))
        yield actions.person(
            app.name, [*reactions_of(app, store), *schedules_of(app, store)], database, liveness, by=by, redact=store.redact
        )


def _act_in_each_store(app: App, asked: StoreReader, by: str | None, act: Callable[[Person], T]) -> list[T]:
    """Run an act, such as a retry, in each store, and return the results. Raises NotFoundError if no store has what the act is about."""
    missing: list[NotFoundError] = []

    def act_in(store: Store) -> list[T]:
        with _acting(app, store, by) as person:
            try:
                return [act(person)]
            except NotFoundError as error:
                missing.append(error)
                return []

    done = [one for _, some in asked.each(act_in) for one in some]
    if not done and missing:
        asked.end()  # the attempt may be in a store that could not be read
        raise missing[-1]
    return done


def _on_one(  # noqa: PLR0913, PLR0917  # the act, the attempt that it is for, and the stores
    app: App, name: str, key: str, occurrence: str | None, only: str | None, by: str | None, act: Callable[[Person], ActionResult]
) -> ActionResult:
    """Run an act, such as a retry, on one attempt. Raises NotFoundError if there is no such attempt, ConflictError if several stores have
    one.
    """
    stores = chosen(stores_of(app, name), only)
    if len(stores) == 1:
        return _act_in_each_store(app, StoreReader(stores), by, act)[0]
    asked = StoreReader(stores)
    found: list[Store] = []

    def look_in(store: Store) -> None:
        with _acting(app, store, by) as person:
            actions.require_attempt_exists(person, name, key, occurrence)
            found.append(store)

    missing: list[NotFoundError] = []

    def looked_in(store: Store) -> None:
        try:
            look_in(store)
        except NotFoundError as error:
            missing.append(error)

    asked.each(looked_in)
    if len(found) > 1:
        raise ConflictError(
            f"{name} has an attempt on {key} in several: say which, with --store, of {', '.join(one.label for one in found)}"
        )
    if not found:
        asked.end()  # the attempt may be in a store that could not be read
        raise missing[-1]
    return _act_in_each_store(app, StoreReader(found), by, act)[0]


# ---- retry, settle, forget -------------------------------------------------------------------------------------------------------
def retry(  # noqa: PLR0913  # each parameter is an option of the command
    reaction: ReactionArgument = None,
    record: RecordArgument = None,
    *,
    occurrence: OccurrenceOption = None,
    every: AllOption = False,
    of: ReactionOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="With --all: those that failed and wait for their time too.")] = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="With --all: rows left out when it was new, nothing else.")] = False,
    only: StoreOption = None,
    by: ByOption = None,
    yes: YesOption = False,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.guarded` reads it
) -> None:
    """Try a held or failed attempt again.

    If its outcome is known already, the handler runs with it here and now, and no new call is made. Other attempts are left to the workers.
    """
    the_app = find_app(app)
    if every:
        name = _bulk_name(reaction, record, of)
        _bulk(
            the_app,
            "retry",
            name,
            only,
            by,
            (lambda person: actions.how_many(person, name, failed=failed, baseline=baseline)),
            (lambda person: actions.retry_all(person, name, failed=failed, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if failed or baseline:
        raise CommandFailed("--failed and --baseline go with --all")
    name, key = _one_name(the_app, reaction, record, of)
    did = _on_one(the_app, name, key, occurrence, only, by, lambda person: actions.retry(person, name, key, occurrence))
    _said("retry", did, as_json=as_json)


def settle(  # noqa: PLR0913  # each parameter is an option of the command
    reaction: Annotated[str, typer.Argument(metavar="REACTION", help="The reaction's name.")],
    record: Annotated[str, typer.Argument(metavar="PK", help="The record's primary key; of several columns a JSON array.")],
    *,
    absent: Annotated[bool, typer.Option("--absent", help="The service was not acted on.")] = False,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="JSON", help="It was, with this outcome (-: from stdin); the handler is run.")
    ] = None,
    occurrence: OccurrenceOption = None,
    only: StoreOption = None,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.guarded` reads it
) -> None:
    """Say what became of a held call, if only you can find out.

    Look up the call's key at the provider first. `groundstate held --long` shows the key.
    """
    if absent == (outcome is not None):
        raise CommandFailed("say one of the two: --absent (the service was not acted on), or --outcome JSON (it was, with this outcome)")
    the_app = find_app(app)
    written = _stdin() if outcome == "-" else outcome

    def act(person: Person) -> ActionResult:
        if written is None:
            return actions.settle_absent(person, reaction, record, occurrence)
        return actions.settle(person, reaction, record, occurrence, outcome=written)

    _said("settle", _on_one(the_app, reaction, record, occurrence, only, by, act), as_json=as_json)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"what came by stdin is no UTF-8: {error}") from None


def forget(  # noqa: PLR0913  # each parameter is an option of the command
    reaction: ReactionArgument = None,
    record: RecordArgument = None,
    *,
    occurrence: OccurrenceOption = None,
    every: AllOption = False,
    of: ReactionOption = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="With --all: rows left out when it was new, nothing else.")] = False,
    only: StoreOption = None,
    by: ByOption = None,
    yes: YesOption = False,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.guarded` reads it
) -> None:
    """Delete a held attempt together with its outcome.

    This is refused while the condition holds, since a new call would follow.
    """
    the_app = find_app(app)
    if every:
        name = _bulk_name(reaction, record, of)
        _bulk(
            the_app,
            "forget",
            name,
            only,
            by,
            (lambda person: actions.how_many(person, name, baseline=baseline)),
            (lambda person: actions.forget_all(person, name, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if baseline:
        raise CommandFailed("--baseline goes with --all")
    name, key = _one_name(the_app, reaction, record, of)
    did = _on_one(the_app, name, key, occurrence, only, by, lambda person: actions.forget(person, name, key, occurrence))
    _said("forget", did, as_json=as_json)


def _one_name(app: App, reaction: str | None, record: str | None, of: str | None) -> tuple[str, str]:
    if of is not None and record is None:
        reaction, record = of, reaction
    if reaction in app.schedules and record is None:
        record = ""
    if reaction is None or record is None:
        raise CommandFailed("which attempt? Give REACTION and PK (`groundstate held` lists them), or --all --reaction NAME")
    return reaction, record


def _bulk_name(reaction: str | None, record: str | None, of: str | None) -> str:
    name = of if of is not None else reaction
    if name is None or record is not None or (of is not None and reaction is not None):
        raise CommandFailed("--all takes one reaction and no record: --all --reaction NAME")
    return name


def _said(command: str, did: ActionResult, *, as_json: bool) -> None:
    if as_json:
        say_json(command, asdict(did))
    else:
        console().print(
            f"{escape_for_terminal(did.reaction)} on {escape_for_terminal(on_what(did.record, did.occurrence))}: {_WORDS[did.became]}:"
            f" {escape_for_terminal(did.words)}",
            soft_wrap=True,
        )
    if not did.done:
        raise typer.Exit(Code.FINDINGS)


_WORDS = {
    "concluded": "concluded",
    "failed": "will be tried again",
    "doubt": "in doubt again",
    "settled": "settled",
    "deleted": "gone",
    "held": "still held",
    "refused": "not possible",
}


def _bulk(  # noqa: PLR0913, PLR0917  # the act, the attempts that it is for, and the output
    app: App,
    command: str,
    name: str,
    only: str | None,
    by: str | None,
    how_many: Callable[[Person], int],
    all_of: Callable[[Person], Iterator[ActionResult]],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    counts: Counter[str] = Counter()
    left: list[ActionResult] = []

    def act(person: Person) -> None:
        total = how_many(person)
        if total and not yes and sys.stdin.isatty():
            typer.confirm(f"{command} {counted(total, 'attempt', 'attempts')} of {escape_for_terminal(name)}?", abort=True, err=True)
        for did in _with_progress(command, total, all_of(person)):
            counts[did.became] += 1
            if not did.done and len(left) < SAID_JSON_MAX:
                left.append(did)

    asked = StoreReader(chosen(stores_of(app, name), only))
    _act_in_each_store(app, asked, by, act)
    if as_json:
        say_json(command, {"reaction": name, "counts": dict(counts), "not_done": [asdict(one) for one in left], **asked.said})
    else:
        _show_bulk(name, counts, left)
    asked.end()
    if left:
        raise typer.Exit(Code.FINDINGS)


def _with_progress(command: str, total: int, all_of: Iterator[ActionResult]) -> Iterator[ActionResult]:
    shown = console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        yield from progress.track(all_of, total=total, description=command)


def _show_bulk(name: str, counts: Counter[str], left: list[ActionResult]) -> None:
    out = console()
    if not counts:
        out.print(f"{escape_for_terminal(name)}: nothing to do.")
        return
    out.print(f"{escape_for_terminal(name)}: {', '.join(f'{count:,} {_WORDS[became]}' for became, count in sorted(counts.items()))}")
    for one in left[:SAID_MAX]:
        out.print(f"  {escape_for_terminal(one.record)}: {escape_for_terminal(one.words)}", soft_wrap=True)
    if len(left) > SAID_MAX:
        out.print(f"  and more: --json lists {len(left):,}")


# ---- trust, rename ---------------------------------------------------------------------------------------------------------------
def trust(
    reaction: Annotated[str | None, typer.Argument(metavar="[REACTION]", show_default=False, help="A reaction; else all of them.")] = None,
    *,
    only: StoreOption = None,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.guarded` reads it
) -> None:
    """Trust reactions again, after a backup was restored and you have looked into its calls in doubt.

    From now on calls are made as usual, and no longer start in doubt.
    """
    the_app = find_app(app)
    asked = StoreReader(chosen(stores_of(the_app, reaction), only))
    done = _act_in_each_store(the_app, asked, by, lambda person: renaming.trust(person, reaction))
    cleared = sorted(name for one in done for name in one.reactions)
    in_doubt, waiting = sum(one.in_doubt for one in done), sum(one.held for one in done)
    if as_json:
        say_json("trust", {"trusted": cleared, "in_doubt": in_doubt, "held_unsure": waiting, **asked.said})
        asked.end()
        return
    out = console()
    out.print(f"Trusted again: {escape_for_terminal(', '.join(cleared))}" if cleared else "Nothing was suspect.", soft_wrap=True)
    if in_doubt:
        are = counted(in_doubt, "attempt is", "attempts are")
        out.print(f"{are} in doubt still: workers settle what is, each by its policy.")
        if cleared:
            again = "Nothing that follows from them is a doubt any more: to be careful, start once more with --after-restore."
            out.print(again, soft_wrap=True)
    if waiting:
        are = "1 is" if waiting == 1 else f"{waiting:,} are"
        out.print(f"{are} held and may have been called: groundstate held --unsure")
    asked.end()


def rename(  # noqa: PLR0913  # each parameter is an option of the command
    old: Annotated[str, typer.Argument(metavar="OLD", help="The name in the database.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name that the code says now.")],
    *,
    whole_app: Annotated[bool, typer.Option("--whole-app", help="OLD and NEW are names of the app, not of a reaction.")] = False,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.guarded` reads it
) -> None:
    """Carry attempts over to the new name of a reaction or of the app.

    Stop the workers first. The keys of calls at the provider stay the same.
    """
    the_app = find_app(app)
    act = renaming.rename_app if whole_app else renaming.rename
    asked = StoreReader(databases_of(the_app) if whole_app else stores_of(the_app, new))
    done = _act_in_each_store(the_app, asked, by, lambda person: act(person, old, new))
    count, reactions = sum(one.attempts for one in done), sum(one.reactions for one in done)
    known = new == the_app.name if whole_app else new in the_app.reactions or new in the_app.schedules
    if as_json:
        content: dict[str, Any] = {"old": old, "new": new, "attempts": count, "reactions": reactions, "declared": known}
        say_json("rename", content | asked.said)
        asked.end()
        return
    what = counted(count, "attempt", "attempts")
    what = f"{counted(reactions, 'reaction', 'reactions')} and {what}" if whole_app else what
    console().print(
        f"{escape_for_terminal(old)} is {escape_for_terminal(new)} now, with {what}. The keys of its calls stay the same.", soft_wrap=True
    )
    if not known:
        where = f"this code's app is {the_app.name!r}" if whole_app else f"this code declares no reaction {new!r}"
        console().print(
            f"Note: {escape_for_terminal(where)}, and workers of it refuse to start while attempts of another name are open.",
            soft_wrap=True,
        )
    asked.end()
