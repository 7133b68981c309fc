"""`groundstate init`: makes groundstate's tables, and says which reactions start on rows that are there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from groundstate.app.app import App
from groundstate.cli.common import REFUSED, AppOption, DebugOption, JsonOption, console, find_app, looking, not_apart, plain, say_json
from groundstate.engine import registry
from groundstate.engine.apart import Admitted
from groundstate.engine.question import Question
from groundstate.engine.registry import Newcomer
from groundstate.engine.wording import counted
from groundstate.rules.acceptance import acceptance


def init(  # noqa: PLR0913  # the options of a command
    *,
    app: AppOption = None,
    tables: Annotated[bool, typer.Option("--tables", help="Also the app's own tables, where missing; later use migrations.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=call|=doubt]",
            help="Start this reaction on rows that match already; 'all': every one. Where it would call for them: NAME=call, surely never"
            " called; NAME=doubt, perhaps. Repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Leave the rows that match now, and start with new ones; a schedule starts with now. Repeatable."
        ),
    ] = None,
    after_restore: Annotated[
        bool,
        typer.Option("--after-restore", help="Our tables were dropped, or a backup was put back: what would be called is in doubt."),
    ] = False,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="A new database: witnesses of begun calls that are there are another one's; erase them.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Create groundstate's four tables where they are missing. May be run again at any time."""
    found = find_app(app)
    said = acceptance(accept or [], {**found.reactions, **found.schedules})
    accepted = sorted(found.reactions) if said.all else list(said.named)
    setting_up = partial(found.init, tables=tables, accept=accept or [], after_restore=after_restore, new_database=new_database)
    created, counts = _init(setting_up, baseline or [], quiet=as_json)
    held = {name: counts.get(name, 0) for name in baseline or []}
    doubts = {name: count for name, count in counts.items() if name not in held}
    left, refused = _what_is_left(found)
    if as_json:
        content = {"app": found.name, "created": created, "accepted": accepted, "in_doubt": doubts}
        say_json("init", content | {"baseline": held, "not_started": left, "refused": refused})
        return
    out = console()
    out.print(f"Created {', '.join(plain(one) for one in created)}." if created else "All tables are there already.", soft_wrap=True)
    for name, count in held.items():
        if name in found.schedules:
            out.print(f"{plain(name)} starts with now: ticks before that are not carried out.", soft_wrap=True)
        else:
            out.print(f"{plain(name)} starts with new rows; {count:,} that match now are left as they are.", soft_wrap=True)
    if accepted:
        named = "every reaction" if said.all else ", ".join(plain(name) for name in accepted)
        out.print(f"Started on the rows that are there: {named}.", soft_wrap=True)
    for name, count in doubts.items():
        which = counted(count, "row that matches now is", "rows that match now are")
        out.print(f"{plain(name)}: {which} in doubt (`groundstate pending`).", soft_wrap=True)
    if after_restore:
        then = "see `groundstate pending`, and say `groundstate trust` once nothing is in doubt any more"
        out.print(f"Rows that would be called are in doubt, and so is what is taken from now on: {then}.", soft_wrap=True)
    for one in left:
        out.print(Text(plain(one.words), style="yellow"), soft_wrap=True)
    for why in refused:
        out.print(Text.assemble((REFUSED, "red"), plain(why)), soft_wrap=True)


def _init(setting_up: Callable[..., list[str]], baseline: list[str], *, quiet: bool) -> tuple[list[str], dict[str, int]]:
    """What was created; and of each reaction how many rows were written down, as a baseline or in doubt."""
    counts: dict[str, int] = {}
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    progress = Progress(*columns, console=console(stderr=True), transient=True, disable=quiet)
    tasks: dict[str, TaskID] = {}

    def tell(name: str, count: int) -> None:
        counts[name] = count
        if not tasks:
            progress.start()
        if name not in tasks:
            tasks[name] = progress.add_task(f"{'baseline' if name in baseline else 'doubts'} of {plain(name)}", total=None)
        progress.update(tasks[name], completed=count)

    try:
        return setting_up(baseline=baseline, progress=tell), counts
    finally:
        if tasks:
            progress.stop()


def _what_is_left(app: App) -> tuple[list[Newcomer], list[str]]:
    """Reactions that a worker would not start, or not in whole; and why a start is refused, since the databases are not apart."""
    left: list[Newcomer] = []
    admitted, refused = Admitted(), list[str]()
    for store in app.parts:
        with looking(store) as (database, _):
            with database.reading() as connection:
                questions = [Question(spec, database) for spec in app.reactions_of(store)]
                known = registry.known(connection, app.name)
                left += registry.newcomers(connection, questions, known, lambda *_: None)[1]  # `setting_up` refused what cannot be asked
            why = not_apart(app, store, database, admitted)
            refused += [] if why is None else [why]
    return left, refused
