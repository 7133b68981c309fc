"""`groundstate init`: makes groundstate's tables, and says which reactions start on rows that are there."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from groundstate.app.app import App
from groundstate.cli.common import AppOption, DebugOption, JsonOption, console, find_app, looking, plain, say_json
from groundstate.engine import registry
from groundstate.engine.question import Question
from groundstate.engine.registry import Newcomer

ALL = "all"


def init(
    app: AppOption = None,
    tables: Annotated[bool, typer.Option("--tables", help="Also the app's own tables, where missing; later use migrations.")] = False,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Start this reaction on rows that match already; 'all': every one. Repeatable.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Leave the rows that match now, and start with new ones; a schedule starts with now. Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001 - read by common.guarded
) -> None:
    """Create groundstate's four tables where they are missing. May be run again at any time."""
    found = find_app(app)
    names = accept or []
    accepted: list[str] | bool = True if ALL in names else names
    created, held = _init(found, accepted, baseline or [], tables=tables, quiet=as_json)
    left = _newcomers(found)
    if as_json:
        content = {"app": found.name, "created": created, "accepted": accepted if isinstance(accepted, list) else sorted(found.reactions)}
        say_json("init", content | {"baseline": held, "not_started": left})
        return
    out = console()
    out.print(f"Created {', '.join(plain(one) for one in created)}." if created else "All tables are there already.", soft_wrap=True)
    for name, count in held.items():
        if name in found.schedules:
            out.print(f"{plain(name)} starts with now: ticks before that are not carried out.", soft_wrap=True)
        else:
            out.print(f"{plain(name)} starts with new rows; {count:,} that match now are left as they are.", soft_wrap=True)
    if accepted:
        out.print(f"Started on the rows that are there: {'every reaction' if accepted is True else ', '.join(names)}.", soft_wrap=True)
    for one in left:
        out.print(Text(plain(one.words), style="yellow"), soft_wrap=True)


def _init(app: App, accept: list[str] | bool, baseline: list[str], *, tables: bool, quiet: bool) -> tuple[list[str], dict[str, int]]:
    """What was created, and for each baseline how many rows are held."""
    held = dict.fromkeys(baseline, 0)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True, disable=quiet or not baseline) as progress:
        tasks = {name: progress.add_task(f"baseline of {plain(name)}", total=None) for name in held}

        def tell(name: str, count: int) -> None:
            held[name] = count
            progress.update(tasks[name], completed=count)

        return app.init(tables=tables, accept=accept, baseline=baseline, progress=tell), held


def _newcomers(app: App) -> list[Newcomer]:
    """Reactions that a worker would not start."""
    left: list[Newcomer] = []
    for store in app.parts:
        with looking(store) as (database, _), database.reading() as connection:
            questions = [Question(spec, database) for spec in app.reactions_of(store)]
            left += registry.newcomers(connection, questions, registry.known(connection, app.name))[1]
    return left
