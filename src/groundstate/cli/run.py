"""`groundstate run`: runs the workers of an app in this process until a signal stops them."""

from __future__ import annotations

import importlib
import logging
import math
import os
import queue
import signal
import sys
import threading
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
    EscapingFormatter,
    StoreReader,
    console,
    escape_for_terminal,
    find_app,
    store_title,
)
from groundstate.cli.health import Health, StuckLog
from groundstate.cli.http_endpoint import Endpoint
from groundstate.cli.json_log import JsonLines
from groundstate.cli.systemd import Notifier
from groundstate.clock import SYSTEM_CLOCK
from groundstate.engine.worker.shut_down import StopResult

log = logging.getLogger("groundstate")
LOOKS_S = 0.5  # seconds between two checks whether a worker is stuck
GO, UP = -1, -2  # events that are no signals. GO: a person says that work may begin. UP: the start has ended.

Events = queue.SimpleQueue[int]  # each is the number of a signal that arrived, or one of the constants GO and UP


def run(  # noqa: PLR0913  # each parameter is an option of the command
    module: Annotated[
        str | None, typer.Argument(metavar="[MODULE:NAME]", help="The app: the same as --app MODULE:NAME.", show_default=False)
    ] = None,
    *,
    app: AppOption = None,
    wait_for_go: Annotated[
        bool, typer.Option("--wait-for-go", help="Start, and carry out nothing until Enter is pressed or SIGUSR1 arrives.")
    ] = False,
    after_restore: Annotated[
        bool, typer.Option("--after-restore", help="A backup was restored: calls that were made after the backup are in doubt.")
    ] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Start new and changed reactions on the rows that match already.")] = False,
    accept_as: Annotated[
        str | None,
        typer.Option(
            metavar="call|doubt",
            help="Like --accept, also for reactions that would make calls for such rows: 'call' if these calls were surely never made,"
            " 'doubt' if they may have been.",
            show_default=False,
        ),
    ] = None,
    leave_undeclared: Annotated[
        bool, typer.Option("--leave-undeclared", help="Start beside open attempts of reactions that this code does not declare.")
    ] = False,
    drain: Annotated[
        float, typer.Option(min=0, max=86_400, metavar="SECONDS", help="At SIGTERM or SIGINT: how long calls in flight may take to end.")
    ] = 10.0,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /livez, /readyz and /metrics there.", show_default=False)
    ] = None,
    stuck: Annotated[
        float,
        typer.Option(
            min=1, max=86_400, metavar="SECONDS", help="A worker without a loop iteration for this long is reported by the log and /livez."
        ),
    ] = 60.0,
    otel: Annotated[bool, typer.Option("--otel", help="Export traces and metrics to OpenTelemetry.")] = False,
    trust_transport: Annotated[
        bool, typer.Option("--trust-transport", help="Use a transport that does not show whether it persists hints.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log in JSON on stderr, one object in each line.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run the workers of an app until SIGTERM or SIGINT. A second signal ends the process at once.

    With --wait-for-go it first prints what is left to do.
    """
    lines = _set_up_log(JsonLines(), debug=debug, stores=False) if log_json else None
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
        # The app is imported before this, so that logging which the app's module has set up stays as it is.
        _set_up_log(None, debug=debug, stores=len(databases_of(found)) > 1)
    _enable_our_loggers(lines)
    if otel:
        _export_to_opentelemetry(found)
    events: Events = queue.SimpleQueue()
    health = Health(found)
    _handle_stop_signals(events, health)
    with _serve_probes_and_manager(found, health, http, stuck) as manager:
        if wait_for_go:
            _print_pending(found)
        start = partial(
            found.start,
            accept=accept if accept_as is None else accept_as,
            after_restore=after_restore,
            wait=True,  # work begins only at `go`, so that the line `run_started` is logged before lines about work
            trust_transport=trust_transport,
            leave_undeclared=leave_undeclared,
        )
        try:
            if _start_unless_signalled(start, events):
                _enable_our_loggers(lines)  # modules that were imported during the start may have changed logging too
                health.started = True
                manager.notify_ready()
                started = "%s is carried out by process %d; `groundstate pending` tells what is left"
                log.info(started, found.name, os.getpid(), extra={"event": "run_started", "app": found.name, "pid": os.getpid()})
                if wait_for_go:
                    _wait_for_go(found, events)
                else:
                    found.go()
                _wait_for_signal(events, StuckLog(found, health, manager.stuck_limit_s(stuck)))
        finally:
            health.draining = True
            manager.notify_stopping()
            told_at = SYSTEM_CLOCK.monotonic()
            ended = found.stop(timedelta(seconds=drain))
    _log_end_of_run(ended, SYSTEM_CLOCK.monotonic() - told_at)


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


def _export_to_opentelemetry(app: App) -> None:
    """Export traces and metrics to the OpenTelemetry providers that the process has set up, for example by `opentelemetry-instrument`."""
    try:
        importlib.import_module("groundstate.telemetry.traces").trace(app)
        importlib.import_module("groundstate.telemetry.opentelemetry_metrics").measure(app)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise CommandFailed("--otel: OpenTelemetry is not installed: pip install 'groundstate[otel]'") from error


# ---- signals -------------------------------------------------------------------------------------------------------------------
def _handle_stop_signals(events: Events, health: Health) -> None:
    seen: list[int] = []

    def handle_stop_signal(number: int, _frame: object) -> None:
        if seen:
            os._exit(128 + number)  # the process ends at once: its locks become free, and other workers settle its calls in flight
        seen.append(number)
        health.draining = True  # readiness probes fail from this moment on
        events.put(number)

    signal.signal(signal.SIGTERM, handle_stop_signal)
    signal.signal(signal.SIGINT, handle_stop_signal)


def _start_unless_signalled(start: Callable[[], None], events: Events) -> bool:
    """Run `start` in a new thread, so that this thread can handle signals meanwhile. Return False if a signal came before `start` ended."""
    failed: list[BaseException] = []

    def run_start() -> None:
        try:
            start()
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failed.append(error)
        finally:
            events.put(UP)

    threading.Thread(target=run_start, name="groundstate-start", daemon=True).start()
    number = events.get()
    if number != UP:
        _log_stopping(number)
    elif failed:
        raise failed[0]
    return number == UP


def _log_stopping(number: int) -> None:
    name = signal.Signals(number).name
    words = "%s: nothing new is begun, and calls in flight may end; a second signal ends the process at once"
    log.info(words, name, extra={"event": "run_stopping", "signal": name})


def _log_end_of_run(ended: StopResult, took_s: float) -> None:
    """Log the last line of the process, and exit with code 6 if a handler hangs."""
    how = "cleanly" if ended.clean else "but a worker could not write that it ended; other workers see that by its lock"
    log.info(
        "Ended after %.1f s, %s; calls left in doubt: %d",
        took_s,
        how,
        ended.in_doubt,
        extra={"event": "run_ended", "in_doubt": ended.in_doubt, "took_s": round(took_s, 3), "clean": ended.clean},
    )
    if ended.hangs:
        raise typer.Exit(Code.LEFT_BEHIND)


def _wait_for_signal(events: Events, stuck: StuckLog) -> None:
    """Wait for SIGTERM or SIGINT, and check meanwhile whether a worker is stuck."""
    while True:
        try:
            number = events.get(timeout=LOOKS_S)
        except queue.Empty:
            stuck.log_changes()
            continue
        if number != GO:
            _log_stopping(number)
            return


def _wait_for_go(app: App, events: Events) -> None:
    signal.signal(signal.SIGUSR1, lambda _number, _frame: events.put(GO))
    by_enter = sys.stdin is not None and sys.stdin.isatty()
    if by_enter:
        threading.Thread(target=_put_go_at_enter, args=(events,), daemon=True).start()
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
        events.put(number)  # a stop signal came before the go: `_wait_for_signal` handles it


def _put_go_at_enter(events: Events) -> None:
    if sys.stdin.readline():
        events.put(GO)


# ---- output and the log ----------------------------------------------------------------------------------------------------------
def _print_pending(app: App) -> None:
    """Print what is left to do on stdout, before anything is carried out."""
    out = console()
    asked = StoreReader(databases_of(app))
    for store, one in asked.read_each(lambda store: pending.read_pending(app, store)):
        pending_tables.print_report(out, app.name, store_title(store), one)
    for left_out in asked.unreadable:
        print(f"{escape_for_terminal(left_out.store)} could not be read: {left_out.message}", file=sys.stderr)
    sys.stdout.flush()


def _set_up_log(lines: logging.Formatter | None, *, debug: bool, stores: bool) -> logging.Handler:
    """Set up the log on stderr: in the format `lines` if that is given, otherwise in colours on a terminal, and in plain lines elsewhere.
    Return the log's handler.
    """
    handler: logging.Handler = logging.StreamHandler()
    if lines is not None:
        handler.setFormatter(lines)
        logging.captureWarnings(True)  # Python's warnings are logged as JSON too
    elif sys.stderr.isatty():
        handler = RichHandler(console=console(stderr=True), show_path=False, markup=False, highlighter=None, log_time_format=_time_in_utc)
        handler.setFormatter(EscapingFormatter("%(message)s", stores=stores))
    else:
        handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", stores=stores))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # not INFO, at which other libraries log each HTTP request
    logging.getLogger("groundstate").setLevel(logging.DEBUG if debug else logging.INFO)
    return handler


def _time_in_utc(moment: datetime) -> Text:
    return Text(f"{moment.astimezone(UTC):%H:%M:%SZ}")


def _enable_our_loggers(lines: logging.Handler | None) -> None:
    """Switch groundstate's loggers on again. Call it after the app's own code ran, as after the import of its module.

    The app's code may have called `logging.config.dictConfig`, which by default disables all existing loggers. lines: the handler of
    --log-json, which replaces the app's own handlers on stderr.
    """
    for name in ("groundstate", "groundstate.store", "py.warnings"):
        logging.getLogger(name).disabled = False
    root = logging.getLogger()
    if lines is not None and lines not in root.handlers:
        others = [one for one in root.handlers if getattr(one, "stream", None) is not sys.stderr]
        root.handlers = [lines, *others]
