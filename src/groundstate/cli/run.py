"""`groundstate run`: runs the workers of an app in this process, and drains them at a signal."""

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
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.text import Text

from groundstate.app.app import App
from groundstate.app.declared import databases_of
from groundstate.cli import pending, pending_tables
from groundstate.cli.common import (
    AppOption,
    Code,
    CommandFailed,
    DebugOption,
    Neutral,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    title_of,
)
from groundstate.cli.health import Health, StuckLog
from groundstate.cli.http_endpoint import Endpoint
from groundstate.cli.json_log import JsonLines
from groundstate.cli.systemd import Notifier
from groundstate.engine.worker import Ended

log = logging.getLogger("groundstate")
LOOKS_S = 0.5  # seconds between two checks whether a worker is stuck
GO, UP = -1, -2

Events = queue.SimpleQueue[int]


def run(  # noqa: PLR0913  # each parameter is an option of the command
    module: Annotated[str | None, typer.Argument(metavar="[MODULE:NAME]", help="The app, as --app.", show_default=False)] = None,
    *,
    app: AppOption = None,
    wait_for_go: Annotated[
        bool, typer.Option("--wait-for-go", help="Start, and carry out nothing until Enter is pressed or SIGUSR1 arrives.")
    ] = False,
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
    """Run a worker until SIGTERM or SIGINT. A second signal ends it at once.

    With --wait-for-go it first prints what is left to do.
    """
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
        # After the import of the app, so that logging which the app sets up is kept.
        _log(None, debug=debug, stores=len(databases_of(found)) > 1)
    _enable_our_loggers(lines)
    if otel:
        _observe(found)
    events: Events = queue.SimpleQueue()
    health = Health(found)
    _listen(events, health)
    with _serve_probes_and_manager(found, health, http, stuck) as manager:
        if wait_for_go:
            _report(found)
        start = partial(
            found.start,
            accept=accept if accept_as is None else accept_as,
            after_restore=after_restore,
            wait=True,  # so that the line `run_started` is logged before the lines about work
            trust_transport=trust_transport,
            leave_undeclared=leave_undeclared,
        )
        try:
            if _come_up(start, events):
                _enable_our_loggers(lines)  # what a start imports may change logging too
                health.started = True
                manager.ready()
                started = "%s is carried out by process %d; `groundstate pending` tells what is left"
                log.info(started, found.name, os.getpid(), extra={"event": "run_started", "app": found.name, "pid": os.getpid()})
                if wait_for_go:
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


# ---- probes and the service manager ----------------------------------------------------------------------------------------------
@contextmanager
def _serve_probes_and_manager(app: App, health: Health, http: str | None, stuck_s: float) -> Iterator[Notifier]:
    """Serve HTTP probes and notify the service manager while the block runs."""
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
    """Send traces and metrics to the OpenTelemetry providers that the process has set up, as `opentelemetry-instrument` does."""
    try:
        importlib.import_module("groundstate.telemetry.traces").trace(app)
        importlib.import_module("groundstate.telemetry.opentelemetry_metrics").measure(app)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise CommandFailed("--otel: OpenTelemetry is not installed: pip install 'groundstate[otel]'") from error


# ---- signals -------------------------------------------------------------------------------------------------------------------
def _listen(events: Events, health: Health) -> None:
    seen: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if seen:
            os._exit(128 + number)  # our lock is freed with the process, and the next worker settles calls in flight
        seen.append(number)
        health.draining = True  # readiness probes fail from this moment on
        events.put(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _come_up(start: Callable[[], None], events: Events) -> bool:
    """Run `start` in a thread of its own, so that signals are handled meanwhile. Return False if a signal came first."""
    failed: list[BaseException] = []

    def come_up() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001  # the error is raised below, in the main thread
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
    """Log the last line, and exit with code 6 if a handler hangs."""
    how = "cleanly" if ended.clean else "but a worker could not write that it ended, and the next worker sees that by its lock"
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
    """Wait for a signal, and check meanwhile whether a worker is stuck."""
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
    log.info(
        "Waiting for a go: nothing is carried out until %s`kill -USR1 %d`",
        enter,
        os.getpid(),
        extra={"event": "run_waits_for_go", "pid": os.getpid()},
    )
    number = events.get()
    if number == GO:
        log.info("Carrying out from now on", extra={"event": "run_goes"})
        app.go()
    else:
        events.put(number)  # a stop signal came before the go: `_wait` handles it


def _read_enter(events: Events) -> None:
    if sys.stdin.readline():
        events.put(GO)


# ---- output and the log ----------------------------------------------------------------------------------------------------------
def _report(app: App) -> None:
    """Print what is left to do on stdout, before anything is carried out."""
    out = console()
    asked = StoreReader(databases_of(app))
    for store, one in asked.each(lambda store: pending.ask(app, store)):
        pending_tables.show(out, app.name, title_of(store), one)
    for left_out in asked.unusable:
        print(f"{escape_for_terminal(left_out.store)} could not be asked: {left_out.message}", file=sys.stderr)
    sys.stdout.flush()


def _log(lines: logging.Formatter | None, *, debug: bool, stores: bool) -> logging.Handler:
    """Log on stderr: in this format if one is given, else in colours at a terminal and in plain lines elsewhere. Return the handler."""
    handler: logging.Handler = logging.StreamHandler()
    if lines is not None:
        handler.setFormatter(lines)
        logging.captureWarnings(True)  # Python's warnings are logged as JSON too
    elif sys.stderr.isatty():
        handler = RichHandler(console=console(stderr=True), show_path=False, markup=False, highlighter=None, log_time_format=_in_utc)
        handler.setFormatter(Neutral("%(message)s", stores=stores))
    else:
        handler.setFormatter(Neutral("%(asctime)s %(levelname)s %(name)s: %(message)s", stores=stores))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # other libraries log a line for each HTTP request at INFO
    logging.getLogger("groundstate").setLevel(logging.DEBUG if debug else logging.INFO)
    return handler


def _in_utc(moment: datetime) -> Text:
    return Text(f"{moment.astimezone(UTC):%H:%M:%SZ}")


def _enable_our_loggers(lines: logging.Handler | None) -> None:
    """Switch our loggers on again after code of the app's ran.

    That code may have called `logging.config.dictConfig`, which by default disables all existing loggers. lines: a handler for JSON on
    stderr that the user asked for; it replaces the app's own handlers on stderr.
    """
    for name in ("groundstate", "groundstate.store", "py.warnings"):
        logging.getLogger(name).disabled = False
    root = logging.getLogger()
    if lines is not None and lines not in root.handlers:
        others = [one for one in root.handlers if getattr(one, "stream", None) is not sys.stderr]
        root.handlers = [lines, *others]
