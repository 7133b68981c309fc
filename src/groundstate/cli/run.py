"""`groundstate run`: a worker in this process. Starts the engine, and drains it at a signal; with --held it waits for a go."""

from __future__ import annotations

import importlib
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated

import typer
from rich.logging import RichHandler

from groundstate.app.app import App
from groundstate.cli import pending, report
from groundstate.cli.common import AppOption, Asked, Code, CommandFailed, DebugOption, Neutral, console, find_app, plain, title_of
from groundstate.cli.endpoint import Endpoint
from groundstate.cli.health import Health, StuckLog
from groundstate.cli.log_lines import JsonLines
from groundstate.cli.systemd import Notifier
from groundstate.engine.worker import Ended

log = logging.getLogger("groundstate")
LOOKS_S = 0.5  # how often it is asked whether the worker still goes on
GO, UP = -1, -2

Events = queue.SimpleQueue[int]


def run(  # noqa: PLR0913  # the options of a command
    module: Annotated[str | None, typer.Argument(metavar="[MODULE:NAME]", help="The app, as --app.", show_default=False)] = None,
    *,
    app: AppOption = None,
    held: Annotated[bool, typer.Option("--held", help="Come up and carry out nothing until Enter, or SIGUSR1.")] = False,
    after_restore: Annotated[
        bool, typer.Option("--after-restore", help="A backup was put back: calls of the lost time are in doubt, and asked after.")
    ] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Start new and changed reactions on the rows that match already.")] = False,
    accept_as: Annotated[
        str | None,
        typer.Option(
            metavar="call|doubt",
            help="The same, also those that make a call for such rows: 'call', they were surely never called; 'doubt', perhaps.",
            show_default=False,
        ),
    ] = None,
    leave_undeclared: Annotated[
        bool, typer.Option("--leave-undeclared", help="Start beside open attempts of reactions that this code does not declare.")
    ] = False,
    drain: Annotated[
        float, typer.Option(min=0, max=86_400, metavar="SECONDS", help="At SIGTERM or SIGINT: how long calls in the air may take to end.")
    ] = 10.0,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /livez, /readyz and /metrics there.", show_default=False)
    ] = None,
    stuck: Annotated[
        float,
        typer.Option(min=1, max=86_400, metavar="SECONDS", help="So long a worker may not come round: then the log and /livez say so."),
    ] = 60.0,
    otel: Annotated[bool, typer.Option("--otel", help="Give traces and metrics to OpenTelemetry.")] = False,
    trust_transport: Annotated[
        bool, typer.Option("--trust-transport", help="Use a transport that does not let it be seen whether it keeps hints.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines of JSON on stderr, each with the name of its event.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT. A second signal ends it at once. With --held it says first what is left to do."""
    lines = _log(JsonLines(), debug=debug, stores=False) if log_json else None
    if module is not None and app is not None and module != app:
        raise CommandFailed(f"two apps are named: {module} and --app {app}; give one")
    if accept_as not in {None, "call", "doubt"}:
        raise CommandFailed(f"--accept-as {accept_as!r}: it is call, or doubt")
    if math.isnan(drain):
        raise CommandFailed("--drain nan is no number of seconds")
    if math.isnan(stuck):
        raise CommandFailed("--stuck nan is no number of seconds")
    found = find_app(module or app)
    if not log_json:
        _log(None, debug=debug, stores=len(found.parts) > 1)  # after the app was imported: where it set its own logging up, that holds
    _be_heard(lines)
    if otel:
        _observe(found)
    events: Events = queue.SimpleQueue()
    health = Health(found)
    _listen(events, health)
    with _told(found, health, http, stuck) as manager:
        if held:
            _report(found)
        start = partial(
            found.start,
            accept=accept if accept_as is None else accept_as,
            after_restore=after_restore,
            held=True,  # so that the line which says that it runs comes before those of what it does
            trust_transport=trust_transport,
            leave_undeclared=leave_undeclared,
        )
        try:
            if _come_up(start, events):
                _be_heard(lines)  # what a start imports or opens may set logging up as well
                health.started = True
                manager.ready()
                started = "%s is carried out by process %d; `groundstate pending` tells what is left"
                log.info(started, found.name, os.getpid(), extra={"event": "run_started", "app": found.name, "pid": os.getpid()})
                if held:
                    _wait_for_go(found, events)
                else:
                    found.go()
                _wait(events, StuckLog(found, health, manager.stuck_s(stuck)))
        finally:
            health.draining = True
            manager.stopping()
            told_at = time.monotonic()
            ended = found.stop(timedelta(seconds=drain))
    _end(ended, time.monotonic() - told_at)


# ---- who is told ---------------------------------------------------------------------------------------------------------------
@contextmanager
def _told(app: App, health: Health, http: str | None, stuck_s: float) -> Iterator[Notifier]:
    """Whoever asks over HTTP, and the service manager, while the block runs."""
    endpoint = None if http is None else Endpoint(app, health, http, stuck_s)
    if endpoint is not None:
        serves = "http://%s serves /livez, /readyz and /metrics"
        log.info(serves, endpoint.address, extra={"event": "http_serves", "address": endpoint.address})
    manager = Notifier(health)
    try:
        yield manager
    finally:
        manager.end()
        if endpoint is not None:
            endpoint.close()


def _observe(app: App) -> None:
    """Traces and metrics to the providers that the process set up, as `opentelemetry-instrument` does."""
    try:
        importlib.import_module("groundstate.telemetry.traces").trace(app)
        importlib.import_module("groundstate.telemetry.instruments").measure(app)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise CommandFailed("--otel: OpenTelemetry is not installed: pip install 'groundstate[otel]'") from error


# ---- signals -------------------------------------------------------------------------------------------------------------------
def _listen(events: Events, health: Health) -> None:
    seen: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if seen:
            os._exit(128 + number)  # the lock dies with us, and the next life settles what was in the air
        seen.append(number)
        health.draining = True  # no request is sent here any more, from this very moment
        events.put(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _come_up(start: Callable[[], None], events: Events) -> bool:
    """Starts, in a thread of its own: so a signal is heard meanwhile. Returns whether it is up; where a signal came first, it is not."""
    failed: list[BaseException] = []

    def come_up() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001  # raised by who waits for it
            failed.append(error)
        finally:
            events.put(UP)

    threading.Thread(target=come_up, name="groundstate-start", daemon=True).start()
    number = events.get()
    if number != UP:
        _say_stopping(number)
    elif failed:
        raise failed[0]
    return number == UP


def _say_stopping(number: int) -> None:
    name = signal.Signals(number).name
    words = "%s: nothing new is begun, and calls in the air may end; a second signal ends at once"
    log.info(words, name, extra={"event": "run_stopping", "signal": name})


def _end(ended: Ended, took_s: float) -> None:
    """The last line of the log, and the exit code."""
    how = "cleanly" if ended.clean else "but a life could not say so, and the next worker sees that by its lock"
    log.info(
        "Ended after %.1f s, %s; calls left in doubt: %d",
        took_s,
        how,
        ended.in_doubt,
        extra={"event": "run_ended", "in_doubt": ended.in_doubt, "took_s": round(took_s, 3), "clean": ended.clean},
    )
    if ended.hangs:
        raise typer.Exit(Code.LEFT_BEHIND)


def _wait(events: Events, stuck: StuckLog) -> None:
    """Until a signal comes. Meanwhile it is looked whether a worker is stuck."""
    while True:
        try:
            number = events.get(timeout=LOOKS_S)
        except queue.Empty:
            stuck.look()
            continue
        if number != GO:
            _say_stopping(number)
            return


def _wait_for_go(app: App, events: Events) -> None:
    signal.signal(signal.SIGUSR1, lambda _number, _frame: events.put(GO))
    by_enter = sys.stdin is not None and sys.stdin.isatty()
    if by_enter:
        threading.Thread(target=_read_enter, args=(events,), daemon=True).start()
    enter = "Enter, or " if by_enter else ""
    log.info("Held: nothing is carried out until %s`kill -USR1 %d`", enter, os.getpid(), extra={"event": "run_held", "pid": os.getpid()})
    number = events.get()
    if number == GO:
        log.info("Carrying out from now on", extra={"event": "run_goes"})
        app.go()
    else:
        events.put(number)  # for `_wait`: told to stop before it was told to go


def _read_enter(events: Events) -> None:
    if sys.stdin.readline():
        events.put(GO)


# ---- what is said --------------------------------------------------------------------------------------------------------------
def _report(app: App) -> None:
    """What is left to do, on stdout, before anything is carried out."""
    out = console()
    asked = Asked(app.parts)
    for store, one in asked.each(lambda store: pending.ask(app, store)):
        report.show(out, app.name, title_of(store), one)
    for left_out in asked.unusable:
        print(f"{plain(left_out.store)} could not be asked: {left_out.message}", file=sys.stderr)
    sys.stdout.flush()


def _log(lines: logging.Formatter | None, *, debug: bool, stores: bool) -> logging.Handler:
    """Logs on stderr: as these lines, else in colours at a terminal, and in plain lines elsewhere. Returns what writes them."""
    handler: logging.Handler = logging.StreamHandler()
    if lines is not None:
        handler.setFormatter(lines)
        logging.captureWarnings(True)  # Python's warnings are lines as well
    elif sys.stderr.isatty():
        handler = RichHandler(console=console(stderr=True), show_path=False, markup=False, highlighter=None, log_time_format="%X")
        handler.setFormatter(Neutral("%(message)s", stores=stores))
    else:
        handler.setFormatter(Neutral("%(asctime)s %(levelname)s %(name)s: %(message)s", stores=stores))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # others' info (a line for each HTTP request) stays out
    logging.getLogger("groundstate").setLevel(logging.DEBUG if debug else logging.INFO)
    return handler


def _be_heard(lines: logging.Handler | None) -> None:
    """After code of the app's that may have called `logging.config.dictConfig`, which by its defaults silences every logger that is there
    already, as ours are. lines: writes JSON on stderr, as a person asked for, and in the place of what the app lets write there.
    """
    for name in ("groundstate", "groundstate.store", "py.warnings"):
        logging.getLogger(name).disabled = False
    root = logging.getLogger()
    if lines is not None and lines not in root.handlers:
        others = [one for one in root.handlers if getattr(one, "stream", None) is not sys.stderr]
        root.handlers = [lines, *others]
