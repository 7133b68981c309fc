"""The commands `retry`, `settle`, `forget`, `trust` and `rename`, by which a person decides about attempts and reactions."""

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
from groundstate.app.declared import databases_of, reactions_of, schedules_of, tables_of_other_stores
from groundstate.app.store import Store
from groundstate.cli.common import (
    AppOption,
    Code,
    CommandFailed,
    DebugOption,
    JsonOption,
    StoreOption,
    StoreReader,
    choose_stores,
    console,
    escape_for_terminal,
    find_app,
    open_store_read_only,
    print_json,
)
from groundstate.cli.held import held, stores_that_may_hold
from groundstate.engine.operate import actions, renaming
from groundstate.engine.operate.action import ActionResult, Person
from groundstate.engine.rows.attempt_text import count_with_noun, describe_record_or_tick
from groundstate.engine.sql import transaction
from groundstate.values.errors import ConflictError, NotFoundError

__all__ = ["forget", "held", "rename", "retry", "settle", "trust"]

T = TypeVar("T")
SAID_MAX = 10  # the largest number of refusals that are printed after an action on many attempts
SAID_JSON_MAX = 1000  # the largest number of refusals that --json lists

ByOption = Annotated[
    str | None, typer.Option("--by", metavar="WHO", help="Who decides this, for the log. Default: the operating system's user.")
]
OccurrenceOption = Annotated[
    str | None, typer.Option("--occurrence", metavar="TEXT", help="The occurrence, if the record has several attempts.")
]
ReactionArgument = Annotated[str | None, typer.Argument(metavar="[REACTION]", show_default=False, help="The reaction's name.")]
RecordArgument = Annotated[
    str | None, typer.Argument(metavar="[PK]", show_default=False, help="The record's primary key; a JSON array if it has several columns.")
]
ReactionOption = Annotated[str | None, typer.Option("--reaction", metavar="NAME", help="With --all: the reaction's name.")]
AllOption = Annotated[bool, typer.Option("--all", help="Act on every held attempt of --reaction NAME.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="With --all: do not ask for confirmation.")]


@contextmanager
def _open_for_person(app: App, store: Store, by: str | None) -> Iterator[Person]:
    with open_store_read_only(store) as (database, liveness):
        transaction.refuse_tables_of_other_stores(database, tables_of_other_stores(app, store))
        yield actions.build_person(
            app.name, [*reactions_of(app, store), *schedules_of(app, store)], database, liveness, by=by, redact=store.redact
        )


def _act_in_each_store(app: App, asked: StoreReader, by: str | None, act: Callable[[Person], T]) -> list[T]:
    """Run an action, such as a retry, in each store. Return one result for each store in which the action found what it looked for.

    Raises NotFoundError if the action raised it in every store.
    """
    missing: list[NotFoundError] = []

    def act_in_store(store: Store) -> list[T]:
        with _open_for_person(app, store, by) as person:
            try:
                return [act(person)]
            except NotFoundError as error:
                missing.append(error)
                return []

    done = [one for _, some in asked.read_each(act_in_store) for one in some]
    if not done and missing:
        asked.report_unreadable()  # the attempt may be in a store that could not be read
        raise missing[-1]
    return done


def _act_on_attempt(  # noqa: PLR0913, PLR0917  # they name the attempt, the stores and the action
    app: App, name: str, key: str, occurrence: str | None, only: str | None, by: str | None, act: Callable[[Person], ActionResult]
) -> ActionResult:
    """Run an action, such as a retry, on one attempt, in the store that has it.

    Raises:
        NotFoundError: no store has such an attempt.
        ConflictError: several stores have such an attempt.
    """
    stores = choose_stores(stores_that_may_hold(app, name), only)
    if len(stores) == 1:
        return _act_in_each_store(app, StoreReader(stores), by, act)[0]
    asked = StoreReader(stores)
    found: list[Store] = []

    def find_attempt_in(store: Store) -> None:
        with _open_for_person(app, store, by) as person:
            actions.require_attempt_exists(person, name, key, occurrence)
            found.append(store)

    missing: list[NotFoundError] = []

    def note_if_missing(store: Store) -> None:
        try:
            find_attempt_in(store)
        except NotFoundError as error:
            missing.append(error)

    asked.read_each(note_if_missing)
    if len(found) > 1:
        raise ConflictError(
            f"{name} has an attempt on {key} in several stores: say which by --store: {', '.join(one.label for one in found)}"
        )
    if not found:
        asked.report_unreadable()  # the attempt may be in a store that could not be read
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
    failed: Annotated[bool, typer.Option("--failed", help="With --all: also failed attempts that wait for their next try.")] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="With --all: only the rows that were left out when the reaction was new.")
    ] = False,
    only: StoreOption = None,
    by: ByOption = None,
    yes: YesOption = False,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """Try a held or failed attempt again.

    If the outcome of its call is known, this command runs the handler with it, and no new call is made. Otherwise a worker tries again.
    """
    the_app = find_app(app)
    if every:
        name = _require_reaction_of_all(reaction, record, of)
        _act_on_all_attempts(
            the_app,
            "retry",
            name,
            only,
            by,
            (lambda person: actions.count_attempts(person, name, failed=failed, baseline=baseline)),
            (lambda person: actions.retry_all(person, name, failed=failed, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if failed or baseline:
        raise CommandFailed("--failed and --baseline go with --all")
    name, key = _require_reaction_and_record(the_app, reaction, record, of)
    did = _act_on_attempt(the_app, name, key, occurrence, only, by, lambda person: actions.retry(person, name, key, occurrence))
    _print_result("retry", did, as_json=as_json)


def settle(  # noqa: PLR0913  # each parameter is an option of the command
    reaction: Annotated[str, typer.Argument(metavar="REACTION", help="The reaction's name.")],
    record: Annotated[str, typer.Argument(metavar="PK", help="The record's primary key; a JSON array if it has several columns.")],
    *,
    absent: Annotated[bool, typer.Option("--absent", help="The service did not act on the call.")] = False,
    outcome: Annotated[
        str | None,
        typer.Option("--outcome", metavar="JSON", help="The service acted, with this outcome (-: read stdin); the handler is run."),
    ] = None,
    occurrence: OccurrenceOption = None,
    only: StoreOption = None,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """Say what became of a held call that groundstate cannot look up by itself.

    Search for the call's key at the provider first. `groundstate held --long` shows the key.
    """
    if absent == (outcome is not None):
        raise CommandFailed("give one of the two: --absent (the service did not act), or --outcome JSON (it acted, with this outcome)")
    the_app = find_app(app)
    written = _read_stdin() if outcome == "-" else outcome

    def settle_attempt(person: Person) -> ActionResult:
        if written is None:
            return actions.settle_absent(person, reaction, record, occurrence)
        return actions.settle(person, reaction, record, occurrence, outcome=written)

    _print_result("settle", _act_on_attempt(the_app, reaction, record, occurrence, only, by, settle_attempt), as_json=as_json)


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"--outcome -: stdin is not UTF-8: {error}") from None


def forget(  # noqa: PLR0913  # each parameter is an option of the command
    reaction: ReactionArgument = None,
    record: RecordArgument = None,
    *,
    occurrence: OccurrenceOption = None,
    every: AllOption = False,
    of: ReactionOption = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="With --all: only the rows that were left out when the reaction was new.")
    ] = False,
    only: StoreOption = None,
    by: ByOption = None,
    yes: YesOption = False,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """Delete a held attempt together with its outcome.

    This is refused while the condition holds, since a worker would then make a new call.
    """
    the_app = find_app(app)
    if every:
        name = _require_reaction_of_all(reaction, record, of)
        _act_on_all_attempts(
            the_app,
            "forget",
            name,
            only,
            by,
            (lambda person: actions.count_attempts(person, name, baseline=baseline)),
            (lambda person: actions.forget_all(person, name, baseline=baseline)),
            yes=yes,
            as_json=as_json,
        )
        return
    if baseline:
        raise CommandFailed("--baseline goes with --all")
    name, key = _require_reaction_and_record(the_app, reaction, record, of)
    did = _act_on_attempt(the_app, name, key, occurrence, only, by, lambda person: actions.forget(person, name, key, occurrence))
    _print_result("forget", did, as_json=as_json)


def _require_reaction_and_record(app: App, reaction: str | None, record: str | None, of: str | None) -> tuple[str, str]:
    if of is not None and record is None:
        reaction, record = of, reaction
    if reaction in app.schedules and record is None:
        record = ""
    if reaction is None or record is None:
        raise CommandFailed("which attempt? Give REACTION and PK (`groundstate held` lists them), or --all --reaction NAME")
    return reaction, record


def _require_reaction_of_all(reaction: str | None, record: str | None, of: str | None) -> str:
    name = of if of is not None else reaction
    if name is None or record is not None or (of is not None and reaction is not None):
        raise CommandFailed("--all takes one reaction and no record: --all --reaction NAME")
    return name


def _print_result(command: str, did: ActionResult, *, as_json: bool) -> None:
    if as_json:
        print_json(command, asdict(did))
    else:
        console().print(
            f"{escape_for_terminal(did.reaction)} on {escape_for_terminal(describe_record_or_tick(did.record, did.occurrence))}:"
            f" {_WORDS[did.became]}: {escape_for_terminal(did.words)}",
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


def _act_on_all_attempts(  # noqa: PLR0913, PLR0917  # they name the attempts, the action and the form of the output
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

    def act_on_held(person: Person) -> None:
        total = how_many(person)
        if total and not yes and sys.stdin.isatty():
            typer.confirm(
                f"{command} {count_with_noun(total, 'attempt', 'attempts')} of {escape_for_terminal(name)}?", abort=True, err=True
            )
        for did in _show_progress(command, total, all_of(person)):
            counts[did.became] += 1
            if not did.done and len(left) < SAID_JSON_MAX:
                left.append(did)

    asked = StoreReader(choose_stores(stores_that_may_hold(app, name), only))
    _act_in_each_store(app, asked, by, act_on_held)
    if as_json:
        print_json(
            command, {"reaction": name, "counts": dict(counts), "not_done": [asdict(one) for one in left], **asked.unusable_stores_json}
        )
    else:
        _print_bulk_result(name, counts, left)
    asked.report_unreadable()
    if left:
        raise typer.Exit(Code.FINDINGS)


def _show_progress(command: str, total: int, all_of: Iterator[ActionResult]) -> Iterator[ActionResult]:
    shown = console(stderr=True)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        yield from progress.track(all_of, total=total, description=command)


def _print_bulk_result(name: str, counts: Counter[str], left: list[ActionResult]) -> None:
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
    reaction: Annotated[
        str | None, typer.Argument(metavar="[REACTION]", show_default=False, help="The reaction's name. Default: all reactions.")
    ] = None,
    *,
    only: StoreOption = None,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """Trust reactions again, after a backup was restored and the calls in doubt were settled.

    From now on calls are made as usual, and no longer start in doubt.
    """
    the_app = find_app(app)
    asked = StoreReader(choose_stores(stores_that_may_hold(the_app, reaction), only))
    done = _act_in_each_store(the_app, asked, by, lambda person: renaming.trust_reactions(person, reaction))
    cleared = sorted(name for one in done for name in one.reactions)
    in_doubt, waiting = sum(one.in_doubt for one in done), sum(one.held for one in done)
    if as_json:
        print_json("trust", {"trusted": cleared, "in_doubt": in_doubt, "held_unsure": waiting, **asked.unusable_stores_json})
        asked.report_unreadable()
        return
    out = console()
    out.print(f"Trusted again: {escape_for_terminal(', '.join(cleared))}" if cleared else "Nothing was suspect.", soft_wrap=True)
    if in_doubt:
        are = count_with_noun(in_doubt, "attempt is", "attempts are")
        out.print(f"{are} still in doubt: workers settle each by its policy.")
        if cleared:
            again = "Calls that follow from these do not start in doubt any more. To be careful, start once more with --after-restore."
            out.print(again, soft_wrap=True)
    if waiting:
        are = "1 is" if waiting == 1 else f"{waiting:,} are"
        out.print(f"{are} held and may have been called: groundstate held --unsure")
    asked.report_unreadable()


def rename(  # noqa: PLR0913  # each parameter is an option of the command
    old: Annotated[str, typer.Argument(metavar="OLD", help="The name in the database.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name in the code now.")],
    *,
    whole_app: Annotated[bool, typer.Option("--whole-app", help="OLD and NEW are names of the app, not of a reaction.")] = False,
    by: ByOption = None,
    app: AppOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001  # `common.exit_with_code_on_error` reads the option
) -> None:
    """Give the attempts and keys of a reaction, or of the app, to its new name.

    Stop the workers first. The idempotency keys of calls stay the same.
    """
    the_app = find_app(app)
    act = renaming.rename_app if whole_app else renaming.rename
    asked = StoreReader(databases_of(the_app) if whole_app else stores_that_may_hold(the_app, new))
    done = _act_in_each_store(the_app, asked, by, lambda person: act(person, old, new))
    count, reactions = sum(one.attempts for one in done), sum(one.reactions for one in done)
    known = new == the_app.name if whole_app else new in the_app.reactions or new in the_app.schedules
    if as_json:
        content: dict[str, Any] = {"old": old, "new": new, "attempts": count, "reactions": reactions, "declared": known}
        print_json("rename", content | asked.unusable_stores_json)
        asked.report_unreadable()
        return
    what = count_with_noun(count, "attempt", "attempts")
    what = f"{count_with_noun(reactions, 'reaction', 'reactions')} and {what}" if whole_app else what
    console().print(
        f"{escape_for_terminal(old)} is {escape_for_terminal(new)} now, with {what}. The keys of its calls stay the same.", soft_wrap=True
    )
    if not known:
        where = f"this code's app is {the_app.name!r}" if whole_app else f"this code declares no reaction {new!r}"
        console().print(
            f"Note: {escape_for_terminal(where)}, and its workers refuse to start while attempts under another name are open.",
            soft_wrap=True,
        )
    asked.report_unreadable()
