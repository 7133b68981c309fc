"""Makes the components of a worker, and gives each component the other components that it uses."""

from __future__ import annotations

from groundstate.engine.call.call_turn import CallTurns
from groundstate.engine.handler_turn import Batches
from groundstate.engine.publish_report import ReportPublisher
from groundstate.engine.recover.admission import Admission
from groundstate.engine.recover.startup import Succession
from groundstate.engine.recover.suspects import Suspects
from groundstate.engine.rows.incarnation import Incarnation
from groundstate.engine.schedule.run_ticks import TickRunner
from groundstate.engine.watch.backlog_sharing import BacklogSharing
from groundstate.engine.watch.due_timers import Timers
from groundstate.engine.watch.peek import BacklogProbe
from groundstate.engine.watch.remote_hints import RemoteHints
from groundstate.engine.watch.slow_conditions import SeparateQueries
from groundstate.engine.watch.sweep_leader import SweepLeader
from groundstate.engine.watch.sweeps import Sweeps
from groundstate.engine.watch.trace_hooks import GuardedWatch, Where
from groundstate.engine.watch.worker_state import WorkerState
from groundstate.engine.worker.hint_sender import HintSender
from groundstate.engine.worker.options import WorkerSettings
from groundstate.engine.worker.runtime import Signals
from groundstate.engine.worker.trouble_pause import TroublePause
from groundstate.rules.acceptance import parse_acceptance
from groundstate.store.port import Opened


class WorkerComponents:
    """The components of one worker. Only the worker's own thread calls them, except where a method says that any thread may call it."""

    def __init__(self, settings: WorkerSettings, opened: Opened, sender: HintSender) -> None:
        app, options = settings.app, settings.options
        self.database, make_liveness, witness = opened
        self.signals = Signals(settings.runtime.threads, wait_for_go=options.wait_for_go)
        declared = frozenset([*(spec.name for spec in settings.specs), *(spec.name for spec in settings.schedules)])
        tables_of = {spec.name: spec.table_name for spec in settings.specs}
        redact = settings.redact or str
        self.succession = Succession(
            lambda: Incarnation(app, self.database, make_liveness(), witness, redact, declared=declared, tables_of=tables_of),
            lambda: self.ticks.forget_enrolment(),  # noqa: PLW0108  # `ticks` is made later
            after_restore=options.after_restore,
        )
        self.worker_state = WorkerState(
            app,
            self.database,
            self.succession.create_successor(),
            settings.store,
            [spec.name for spec in settings.schedules],
            GuardedWatch(Where(app, settings.store), settings.watch),
        )
        self.trouble = TroublePause(self.worker_state)
        self.admission = Admission(
            self.worker_state, accept=parse_acceptance(options.accept, declared), leave_undeclared=options.leave_undeclared
        )
        self.call_turns = CallTurns(self.worker_state, self.signals.wake.set, settings.runtime.caller)
        self.timers = Timers(self.worker_state)
        self.ticks = TickRunner(self.worker_state, settings.schedules)
        self.leader = SweepLeader(self.worker_state, lambda: sender.is_up)
        self.remote_hints = RemoteHints()
        self.sharing = BacklogSharing(self.worker_state, self.leader, sender.send_hint)
        self.report_publisher = ReportPublisher(
            self.worker_state, self.call_turns.limits, self.sharing, lambda: self.signals.is_waiting_for_go
        )
        self.separate_queries = SeparateQueries(self.worker_state, self.signals.wake.set)
        self.batches = Batches(self.worker_state, self.sharing)
        self.suspects = Suspects(self.worker_state)
        self.backlog_probe = BacklogProbe(self.worker_state, self.leader, self.timers)
        self.sweeps = Sweeps(self.worker_state, self.leader, self.backlog_probe, self.timers)
