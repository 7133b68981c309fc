"""Prints the report of `pending` as tables for people. The engine makes the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from groundstate.cli.common import escape_for_terminal, format_time_for_people
from groundstate.engine.operate import left_by_other_apps
from groundstate.engine.operate.left_by_other_apps import LeftByOther
from groundstate.engine.operate.living_workers import handler_locks_in_words, liveness_in_words, workers_of_app
from groundstate.engine.operate.pending import OpenAttempt, Pending, ToDo
from groundstate.engine.operate.unanswered_states import COUNTED_MOST
from groundstate.engine.rows import data_restore_check
from groundstate.engine.rows.attempt_text import count_with_noun, describe_record_or_tick
from groundstate.engine.rows.reaction_registry import COUNTED_MAX, undeclared_message
from groundstate.engine.sql import odd_due_times


def make_table(*columns: str) -> Table:
    """Return an empty table in the style of all tables of the command line."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        right = name in ("rows", "pid", "begins")
        made.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    return made


def print_table(console: Console, made: Table) -> None:
    """Print the table. If the terminal is too narrow for it, print each row as a list of lines, so that no key is broken and each can be
    copied.
    """
    if _fit_columns(console, made) and len(console.render_lines(made)) <= READABLE_LINES * (made.row_count + 1):
        console.print(made)
        return
    wide = max(len(str(column.header)) for column in made.columns)
    for name, *cells in zip(*(column.cells for column in made.columns), strict=True):
        console.print(_cell_as_text(name, style="bold"), soft_wrap=True)
        for column, cell in zip(made.columns[1:], cells, strict=True):
            if str(cell) not in ("", "-"):
                console.print(Text.assemble(f"  {column.header!s:<{wide}}  ", _cell_as_text(cell)), soft_wrap=True)


def _fit_columns(console: Console, made: Table) -> bool:
    """Set the width of each column to that of its longest word, and give the remaining space to the columns that would wrap most.

    Returns False if the terminal is too narrow even for the longest words.
    """
    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in made.columns]
    whole = [max(cell_len(cell) for cell in column) for column in cells]
    widths = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    for column, width in zip(made.columns, widths, strict=True):
        column.width = width
    left = console.width - Measurement.get(console, console.options.update(max_width=ANY_WIDTH), made).maximum
    if left < 0:
        return False
    for _ in range(min(left, sum(whole) - sum(widths))):
        most = max(range(len(widths)), key=lambda one: whole[one] / max(widths[one], 1))
        widths[most] += 1
        made.columns[most].width = widths[most]
    return True


def _cell_as_text(cell: object, style: str = "") -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell), style=style)


READABLE_LINES = 3  # a table whose rows take more lines than this on average is printed as a list
ANY_WIDTH = 10_000  # characters in a line of a terminal that is wide enough for any table


def print_report(console: Console, app: str, store: str, report: Pending) -> None:
    """Print the whole report on one store."""
    console.print(
        Text(
            f"{escape_for_terminal(store)} at {format_time_for_people(report.now)}{', a standby' if report.standby else ''}", style="bold"
        ),
        soft_wrap=True,
    )
    if report.at is not None:
        console.print(
            Text(f"What would be due at {format_time_for_people(report.at, report.now)}, if nothing were carried out until then"),
            soft_wrap=True,
        )
    console.print()
    _print_to_do(console, report)
    _print_in_doubt(console, report)
    _print_failed(console, report)
    _print_held(console, report)
    _print_waits_and_warnings(console, app, report)
    _print_states(console, report)
    _print_workers(console, report)
    console.print(Text(report.in_flight, style="green"), soft_wrap=True)
    if not report.left:
        console.print(Text("Nothing is left to do.", style="green"))


def shorten(words: str | None) -> str:
    """Return the text, cut to `CELL` characters for a table cell. The commands `why` and `held --long` print the whole text."""
    words = words or ""
    return words if len(words) <= CELL else f"{words[: CELL - 1]}…"


CELL = 160  # the largest number of characters of a text that a table cell shows


def _print_section(console: Console, title: str, made: Table, rows: Iterable[Sequence[object]]) -> None:
    for row in rows:
        made.add_row(*(one if isinstance(one, Text) else escape_for_terminal(one) for one in row))
    if made.row_count:
        console.print(Text(title, style="bold"), soft_wrap=True)
        print_table(console, made)
        console.print()


def _print_to_do(console: Console, report: Pending) -> None:
    made = make_table("reaction", "on", "rows", "first keys", "condition")
    for one in report.to_do:
        if one.rows:
            state = _state_in_words(one, report)
            name = one.reaction if state is None else f"{one.reaction} ({state})"
            made.add_row(
                escape_for_terminal(name),
                escape_for_terminal(one.table),
                _rows_in_words(one.rows),
                escape_for_terminal(", ".join(one.oldest)),
                escape_for_terminal(one.condition),
            )
    _print_section(console, "To be carried out", made, ())
    _print_due_times(console, report)
    _print_schedules(console, report)


def _state_in_words(one: ToDo, report: Pending) -> str | None:
    """Return why some of these rows are not carried out, in the words of `groundstate status`. Returns None if all rows are carried out."""
    if one.reaction in report.lacks:
        return "not carried out"
    if one.starts:
        return None
    if one.reaction in report.waiting:
        return "waits for a person"
    return "on in part" if any(new.both for new in report.newcomers if new.name == one.reaction) else "not started"


def _print_schedules(console: Console, report: Pending) -> None:
    made = make_table("schedule", "ticks", "last", "missed", "what becomes of them", "next")
    for one in report.schedules:
        missed = f"{'at least ' if one.at_least else ''}{one.missed:,}" if one.missed else "-"
        made.add_row(
            escape_for_terminal(one.name),
            escape_for_terminal(one.words),
            tick_in_words(one.last),
            missed,
            escape_for_terminal(one.fate or "-"),
            tick_in_words(one.next),
        )
    _print_section(console, "Schedules", made, ())


def tick_in_words(tick: datetime | None) -> str:
    """Return a tick of a schedule as text, in the schedule's time zone."""
    return "-" if tick is None else tick.isoformat(sep=" ", timespec="seconds" if tick.second else "minutes")


def _print_due_times(console: Console, report: Pending) -> None:
    now = report.at or report.now
    made = make_table("reaction", "overdue since", "too late", "to come", "next due")
    for one in report.to_do:
        if one.overdue_since or one.too_late or one.next_due:
            late = f"{_rows_in_words(one.too_late)}: expired answers" if one.too_late else "-"
            since, next_due = (format_time_for_people(moment, now) if moment else "-" for moment in (one.overdue_since, one.next_due))
            made.add_row(escape_for_terminal(one.reaction), since, late, _rows_in_words(one.upcoming) if one.upcoming else "-", next_due)
    _print_section(console, "Due times", made, ())


def _rows_in_words(rows: int) -> str:
    return f"at least {COUNTED_MAX:,}" if rows >= COUNTED_MAX else f"{rows:,}"


def _title_with_count(name: str, all_of_them: int, listed: Sequence[object]) -> str:
    return f"{name}: {all_of_them:,}" + (f", of which {len(listed)} are listed" if len(listed) < all_of_them else "")


def _sum_counts(report: Pending, *names: str) -> int:
    return sum(report.counts.get(name, 0) for name in names)


def _print_in_doubt(console: Console, report: Pending) -> None:
    others = sum(count for name, count in report.counts.items() if name not in ("failed", "held"))
    made = make_table("reaction", "record", "it is", "settled", "from", "error")
    _print_section(
        console,
        _title_with_count("Begun or in doubt", others, report.in_doubt),
        made,
        (
            (one.reaction, record_and_occurrence(one), one.standing, one.next, _settled_from_in_words(one, report.now), shorten(one.error))
            for one in report.in_doubt
        ),
    )


def _settled_from_in_words(one: OpenAttempt, now: datetime) -> str:
    words = format_time_for_people(one.settled_from, now) if one.settled_from else "at once"
    return f"{words}; its key is good until {format_time_for_people(one.key_kept_until)}" if one.key_kept_until else words


def record_and_occurrence(one: OpenAttempt) -> str:
    """Return the key of an attempt's record, followed by the occurrence if there is one."""
    return describe_record_or_tick(one.record, one.occurrence)


def _print_failed(console: Console, report: Pending) -> None:
    made = make_table("reaction", "record", "failures", "next", "error")
    title = _title_with_count("Failed", _sum_counts(report, "failed"), report.failed)
    rows = (
        (one.reaction, record_and_occurrence(one), one.tries, format_time_for_people(one.next_at, report.now), shorten(one.error))
        for one in report.failed
    )
    _print_section(console, title, made, rows)


def _print_held(console: Console, report: Pending) -> None:
    made = make_table("reaction", "record", "begun", "why", "error")
    title = _title_with_count("Held for a person", _sum_counts(report, "held"), report.held)
    rows = (
        (one.reaction, record_and_occurrence(one), format_time_for_people(one.since, report.now), shorten(one.why), shorten(one.error))
        for one in report.held
    )
    _print_section(console, title, made, rows)


def print_left_by_others(console: Console, app: str, others: Sequence[LeftByOther]) -> None:
    """Print open attempts of other apps that have no living worker. Attempts that affect this app are printed with the cure; all others are
    printed in one line.
    """
    for one in others:
        if one.ours:
            console.print(Text(escape_for_terminal(one.message_for(app)), style="yellow"), soft_wrap=True)
    quiet = left_by_other_apps.describe_unrelated(others)
    if quiet is not None:
        console.print(Text(escape_for_terminal(quiet)), soft_wrap=True)


def _print_waits_and_warnings(console: Console, app: str, report: Pending) -> None:
    made = make_table("reaction", "record", "waits for", "which is")
    waits = ((one.reaction, one.record, one.waits_for, one.standing) for one in report.waits)
    _print_section(console, "Waiting for another call on the same record, or for another record of its line", made, waits)
    for one in report.waits:
        if one.person is not None:
            words = f"{one.reaction} on {one.record} goes on when a person has settled its held round {one.round}: {one.person}"
            console.print(Text(escape_for_terminal(words), style="yellow"), soft_wrap=True)
    made = make_table("reaction", "record", "pid", "since", "who")
    locked = ((one.reaction, one.record, one.pid, format_time_for_people(one.since, report.now), one.who) for one in report.locked)
    whose = "" if any(one.ours for one in report.locked) else " of another program"
    _print_section(console, f"Locked by a long transaction{whose}", made, locked)
    warn = [f"{name} cannot be seen: {words}" for name, words in report.unseen.items() if name not in report.lacks]
    warn += [f"{name} is not carried out: {words}" for name, words in report.lacks.items()]
    warn += handler_locks_in_words(workers_of_app(app, report.workers))
    warn += [f"{one.reaction}: {one.odd_time}: {odd_due_times.CURE}" for one in report.to_do if one.odd_time]
    warn += [one.message for one in report.newcomers]
    if report.suspects:
        warn.append(
            f"The database went back in time: each call of {', '.join(report.suspects)} starts in doubt until `groundstate trust`, which is"
            " to be run once nothing is in doubt any more"
        )
    if report.waiting:
        warn.append(data_restore_check.waiting_message(report.waiting))
    warn += [
        f"{count_with_noun(count, 'attempt is', 'attempts are')} of reaction {name!r}, which this code does not declare: a worker starts"
        " only with --leave-undeclared, until you rename the reaction or settle them"
        for name, count in report.undeclared.items()
    ]
    if report.gone:
        warn.append(undeclared_message(report.gone))
    for words in warn:
        console.print(Text(escape_for_terminal(words), style="yellow"), soft_wrap=True)
    print_left_by_others(console, app, report.others)
    if report.baseline:
        left = count_with_noun(
            report.baseline, "row was there before its reaction, and is", "rows were there before their reaction, and are"
        )
        console.print(Text(f"{left} left alone (--baseline)."))


def _print_states(console: Console, report: Pending) -> None:
    if report.states is None:
        return
    made = make_table("column", "value", "rows")
    values = [one for one in report.states if one.value is not None]
    rows = ((f"{one.table}.{one.column}", shorten(one.value), _state_rows_in_words(one.rows)) for one in values)
    _print_section(console, "States that no reaction handles", made, rows)
    for one in report.states:
        if one.why:
            console.print(Text(escape_for_terminal(one.why)), soft_wrap=True)
    if not report.states:
        console.print("Every state is handled by a reaction, or declared as at rest.")


def _state_rows_in_words(rows: int) -> str:
    return f"{rows:,}" if rows < COUNTED_MOST else f"{COUNTED_MOST:,} or more"


def _print_workers(console: Console, report: Pending) -> None:
    made = make_table("worker", "of app", "it", "on", "since", "calls begun")
    for one in report.workers:
        where = f"{one.host} (process {one.pid})" if one.host else "-"
        begun = f"{one.begins:,}" if one.begins is not None else "?"
        made.add_row(
            f"{one.id:x}",
            escape_for_terminal(one.app or "-"),
            liveness_in_words(one),
            escape_for_terminal(where),
            format_time_for_people(one.began_at, report.now),
            begun,
        )
    _print_section(console, "Workers", made, ())
    console.print(Text(f"Before: {report.last_end}. Who is alive is told by {report.lock}."), soft_wrap=True)
    if report.careful:
        words = "Careful mode: two workers ended uncleanly, so batches are small until the record that does it is found."
        console.print(Text(words, style="yellow"), soft_wrap=True)
