"""`groundstate retry`, `settle`, `forget`, `trust`, `rename`: what a person says and decides. Decides nothing itself."""

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
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Asked,
    Code,
    CommandFailed,
    DebugOption,
    JsonOption,
    StoreOption,
    chosen,
    console,
    find_app,
    looking,
    plain,
    say_json,
)
from groundstate.cli.held import held, stores_of
from groundstate.engine import persons, renaming, transaction
from groundstate.engine.deeds import Did, Person
from groundstate.engine.wording import counted, on_what
from groundstate.values.errors import Conflict, NotFound

__all__ = ["forget", "held", "rename", "retry", "settle", "trust"]

T = TypeVar("T")
SAID_MAX = 10  # refusals that are shown one by one after a bulk act
SAID_JSON_MAX = 1000

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
    with looking(store) as (database, lives):
        transaction.keep_out(database, app.elsewhere(store))
        yield persons.person(app.name, [*app.reactions_of(store), *app.schedules_of(store)], database, lives, by=by, redact=store.redact)


def _where_it_is(app: App, asked: Asked, by: str | None, act: Callable[[Person], T]) -> list[T]:
    """The act in each store that knows what it is about. Raises NotFound where none does."""
    missing: list[NotFound] = []

    def act_in(store: Store) -> list[T]:
        with _acting(app, store, by) as person:
            try:
                return [act(person)]
            except NotFound as error:
                missing.append(error)
                return []

    done = [one for _, some in asked.each(act_in) for one in some]
    if not done and missing:
        asked.end()  # it may be where nobody could be asked
        raise missing[-1]
    return done


def _on_one(  # noqa: PLR0913, PLR0917  # what is done, to which attempt, in which of the stores
    app: App, name: str, key: str, occurrence: str | None, only: str | None, by: str | None, act: Callable[[Person], Did]
) -> Did:
    """The act on the one attempt that is meant. Raises NotFound, and Conflict where several stores have one."""
    stores = chosen(stores_of(app, name), only)
    if len(stores) == 1:
        return _where_it_is(app, Asked(stores), by, act)[0]
    asked = Asked(stores)
    found: list[Store] = []

    def look_in(store: Store) -> None:
        with _acting(app, store, by) as person:
            persons.look(person, name, key, occurrence)
            found.append(store)

    missing: list[NotFound] = []

    def looked_in(store: Store) -> None:
        try:
            look_in(store)
        except NotFound as error:
            missing.append(error)

    asked.each(looked_in)
    if len(found) > 1:
        raise Conflict(f"{name} has an attempt on {key} in several: say which, with --store, of {', '.join(one.label for one in found)}")
    if not found:
        asked.end()  # it may be where nobody could be asked
        raise missing[-1]
    return _where_it_is(app, Asked(found), by, act)[0]


# ---- retry, settle, forget -------------------------------------------------------------------------------------------------------
def retry(  # noqa: PLR0913  # the options of a command
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
    debug: DebugOption = False,  # noqa: ARG001  # read by common.guarded
) -> None:
    """Try again. An outcome in hand is concluded by the handler, here and now, and is never a new call; the rest goes to the workers."""
    the_app = find_app(app)
    if every:
        name = _bulk_name(reaction, record, of)
        _bulk(
            the_app,
            "retry",
            name,
            only,
            by,
            (lambda person: persons.how_many(person, name, failed=failed, baseline=baseline)),
            (lambda person: persons.retry_all(person, name, failed=failed, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if failed or baseline:
        raise CommandFailed("--failed and --baseline go with --all")
    name, key = _one_name(the_app, reaction, record, of)
    did = _on_one(the_app, name, key, occurrence, only, by, lambda person: persons.retry(person, name, key, occurrence))
    _said("retry", did, as_json=as_json)


def settle(  # noqa: PLR0913  # the options of a command
    reaction: Annotated[str, typer.Argument(metavar="REACTION", help="The reaction's name.")],
    record: Annotated[str, typer.Argument(metavar="PK", help="The record's primary key; of several columns a JSON array.")],
    *,
    absent: Annotated[bool, typer.Option("--absent", help="The outside was not acted on.")] = False,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="JSON", help="It was, with this outcome (-: from stdin); the handler is run.")
    ] = None,
    occurrence: OccurrenceOption = None,
    only: StoreOption = None,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # read by common.guarded
) -> None:
    """Say what became of a held call, where nobody else can. Look its key up at the provider first (`groundstate held --long`)."""
    if absent == (outcome is not None):
        raise CommandFailed("say one of the two: --absent (the outside was not acted on), or --outcome JSON (it was, with this outcome)")
    the_app = find_app(app)
    written = _stdin() if outcome == "-" else outcome

    def act(person: Person) -> Did:
        if written is None:
            return persons.settle_absent(person, reaction, record, occurrence)
        return persons.settle(person, reaction, record, occurrence, outcome=written)

    _said("settle", _on_one(the_app, reaction, record, occurrence, only, by, act), as_json=as_json)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"what came by stdin is no UTF-8: {error}") from None


def forget(  # noqa: PLR0913  # the options of a command
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
    debug: DebugOption = False,  # noqa: ARG001  # read by common.guarded
) -> None:
    """Delete what is held, and its outcome with it. Refused while the condition holds, since that would be a new call."""
    the_app = find_app(app)
    if every:
        name = _bulk_name(reaction, record, of)
        _bulk(
            the_app,
            "forget",
            name,
            only,
            by,
            (lambda person: persons.how_many(person, name, baseline=baseline)),
            (lambda person: persons.forget_all(person, name, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if baseline:
        raise CommandFailed("--baseline goes with --all")
    name, key = _one_name(the_app, reaction, record, of)
    did = _on_one(the_app, name, key, occurrence, only, by, lambda person: persons.forget(person, name, key, occurrence))
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


def _said(command: str, did: Did, *, as_json: bool) -> None:
    if as_json:
        say_json(command, asdict(did))
    else:
        console().print(
            f"{plain(did.reaction)} on {plain(on_what(did.record, did.occurrence))}: {_WORDS[did.became]}: {plain(did.words)}",
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


def _bulk(  # noqa: PLR0913, PLR0917  # what is done, to what, and how it is told
    app: App,
    command: str,
    name: str,
    only: str | None,
    by: str | None,
    how_many: Callable[[Person], int],
    all_of: Callable[[Person], Iterator[Did]],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    counts: Counter[str] = Counter()
    left: list[Did] = []

    def act(person: Person) -> None:
        total = how_many(person)
        if total and not yes and sys.stdin.isatty():
            typer.confirm(f"{command} {counted(total, 'attempt', 'attempts')} of {plain(name)}?", abort=True, err=True)
        for did in _with_progress(command, total, all_of(person)):
            counts[did.became] += 1
            if not did.done and len(left) < SAID_JSON_MAX:
                left.append(did)

    asked = Asked(chosen(stores_of(app, name), only))
    _where_it_is(app, asked, by, act)
    if as_json:
        say_json(command, {"reaction": name, "counts": dict(counts), "not_done": [asdict(one) for one in left], **asked.said})
    else:
        _show_bulk(name, counts, left)
    asked.end()
    if left:
        raise typer.Exit(Code.FINDINGS)


def _with_progress(command: str, total: int, all_of: Iterator[Did]) -> Iterator[Did]:
    shown = console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        yield from progress.track(all_of, total=total, description=command)


def _show_bulk(name: str, counts: Counter[str], left: list[Did]) -> None:
    out = console()
    if not counts:
        out.print(f"{plain(name)}: nothing to do.")
        return
    out.print(f"{plain(name)}: {', '.join(f'{count:,} {_WORDS[became]}' for became, count in sorted(counts.items()))}")
    for one in left[:SAID_MAX]:
        out.print(f"  {plain(one.record)}: {plain(one.words)}", soft_wrap=True)
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
    debug: DebugOption = False,  # noqa: ARG001  # read by common.guarded
) -> None:
    """After a backup was put back and its doubts were looked into: what is taken from now on is called, and starts no more as a doubt."""
    the_app = find_app(app)
    asked = Asked(chosen(stores_of(the_app, reaction), only))
    done = _where_it_is(the_app, asked, by, lambda person: renaming.trust(person, reaction))
    cleared = sorted(name for one in done for name in one.reactions)
    in_doubt, waiting = sum(one.in_doubt for one in done), sum(one.held for one in done)
    if as_json:
        say_json("trust", {"trusted": cleared, "in_doubt": in_doubt, "held_unsure": waiting, **asked.said})
        asked.end()
        return
    out = console()
    out.print(f"Trusted again: {plain(', '.join(cleared))}" if cleared else "Nothing was suspect.", soft_wrap=True)
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


def rename(  # noqa: PLR0913  # the options of a command
    old: Annotated[str, typer.Argument(metavar="OLD", help="The name in the database.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name that the code says now.")],
    *,
    whole_app: Annotated[bool, typer.Option("--whole-app", help="OLD and NEW are names of the app, not of a reaction.")] = False,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # read by common.guarded
) -> None:
    """Carry attempts over to a new name of a reaction or of the app. Stop the workers first. Keys at the provider stay the same."""
    the_app = find_app(app)
    act = renaming.rename_app if whole_app else renaming.rename
    asked = Asked(the_app.parts if whole_app else stores_of(the_app, new))
    done = _where_it_is(the_app, asked, by, lambda person: act(person, old, new))
    count, reactions = sum(one.attempts for one in done), sum(one.reactions for one in done)
    known = new == the_app.name if whole_app else new in the_app.reactions or new in the_app.schedules
    if as_json:
        content: dict[str, Any] = {"old": old, "new": new, "attempts": count, "reactions": reactions, "declared": known}
        say_json("rename", content | asked.said)
        asked.end()
        return
    what = counted(count, "attempt", "attempts")
    what = f"{counted(reactions, 'reaction', 'reactions')} and {what}" if whole_app else what
    console().print(f"{plain(old)} is {plain(new)} now, with {what}. The keys of its calls stay the same.", soft_wrap=True)
    if not known:
        where = f"this code's app is {the_app.name!r}" if whole_app else f"this code declares no reaction {new!r}"
        console().print(f"Note: {plain(where)}, and workers of it refuse to start while attempts of another name are open.", soft_wrap=True)
    asked.end()
