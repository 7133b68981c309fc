"""One iteration of a worker's loop: the worker checks that it still has its lock, receives hints, begins a sweep if one is due, concludes
and begins calls, and runs handlers.
"""

from __future__ import annotations

from dataclasses import replace

from groundstate.engine.call import rate_limit
from groundstate.engine.recover import adopt
from groundstate.engine.recover.startup import shorten_waits_of_wrong_clock, take_over_from_dead_workers
from groundstate.engine.watch import due_attempts, locked_tables, raising_conditions, unknown_states
from groundstate.engine.watch.idle_probe import IdleProbe
from groundstate.engine.watch.sweeps import SWEEP_S
from groundstate.engine.worker.components import WorkerComponents
from groundstate.engine.worker.handler_phase import HandlerPhase
from groundstate.engine.worker.hint_sender import HintSender
from groundstate.engine.worker.idle_wait import IdleWait

DEAD_EACH_S = 0.2  # shortest time between two checks for dead workers, in seconds for each other worker


class LoopIteration:
    """Runs the iterations of one worker's loop. Only the worker's own thread calls it."""

    def __init__(self, components: WorkerComponents, sender: HintSender, handler_phase: HandlerPhase, idle_wait: IdleWait) -> None:
        self.components = components
        self._sender = sender
        self._handler_phase = handler_phase
        self._idle_wait = idle_wait
        self._next_call_check = 0.0  # monotonic time at which running calls are checked next
        self._next_dead_check = 0.0  # monotonic time of the earliest next check for dead workers

    def run_iteration(self) -> None:
        """Run one iteration. Do nothing while a pause after an error lasts."""
        components, worker_state = self.components, self.components.worker_state
        started = worker_state.clock.monotonic()
        if started < components.trouble.ends_at:
            return
        before = worker_state.progress.done_since_sweep
        components.database.raise_if_unusable()
        components.succession.check_lock(worker_state)
        components.leader.turned_at = started
        if worker_state.stopping is not None:
            components.leader.resign()
        components.remote_hints.pass_on_ready_hints(worker_state, started)
        components.leader.announce_or_watch_leader(started, self._sender.send_hint)
        if components.sweeps.begin_sweep_if_due(self._adopt_and_reread_tables, self._do_chores_between_sweeps):
            self._idle_wait.note_sweep_began()
        if worker_state.left_begun:
            components.call_turns.settle_begun_attempts_without_call()
            worker_state.note_begun_attempts_left(left=False)
        components.sharing.exchange_reports()
        # Whether passes of a sweep run. This is computed first, since `_begin_passes` begins passes that belong to no sweep.
        sweeping = any(queue.has_pass for queue in worker_state.all_queues)
        if not sweeping:
            worker_state.tally.record_sweep_end(started)
        self._begin_passes()
        components.separate_queries.run_separate_queries()
        self._check_running_calls(started)
        components.suspects.choose_next()
        components.call_turns.run_turn()
        if worker_state.stopping is None:
            if self._handler_phase.may_run_handlers:
                self._handler_phase.run_handlers()
            self._idle_wait.signal_if_idle()
        components.trouble.end_trouble()
        if sweeping and worker_state.progress.done_since_sweep == before:
            components.sweeps.idle_s += worker_state.clock.monotonic() - started
        components.report_publisher.write_if_changed()
        worker_state.incarnation.lines.log_left_out_counts(started)

    def _begin_passes(self) -> None:
        """Let reactions continue if their obstacle is gone, and begin the backlog passes that are due."""
        components, worker_state = self.components, self.components.worker_state
        if locked_tables.recheck_barred_queues(worker_state):
            components.timers.mark_stale()
        if components.admission.recheck_lacking_reactions():
            components.timers.mark_stale()
        components.timers.begin_due_passes()
        raising_conditions.continue_searches(worker_state)
        components.backlog_probe.probe_new_passes()

    def _adopt_and_reread_tables(self, seen: IdleProbe) -> None:
        """Do the parts of a sweep that query no reaction's condition: adopt attempts of dead workers, settle begun attempts that have no
        call in memory, read the registry of reactions and the schedules again, and look up the next due time.
        """
        components, worker_state = self.components, self.components.worker_state
        now = worker_state.clock.monotonic()
        if seen.strangers and now < self._next_dead_check:
            seen = replace(seen, strangers=False)
        else:
            self._next_dead_check = now + DEAD_EACH_S * (components.leader.worker_count - 1)
        take_over_from_dead_workers(worker_state, seen)
        awaits_until = worker_state.incarnation.awaits_until
        if awaits_until is not None:
            components.sweeps.next = min(components.sweeps.next, max(awaits_until, self._next_dead_check, now))
        if seen.attempts:
            components.call_turns.settle_begun_attempts_without_call()
        if seen.old_rates:
            rate_limit.delete_expired_counts(worker_state)
        components.admission.reread_registry(seen)
        components.admission.recheck_older_code()
        components.ticks.reread_rows()
        if seen.attempts:
            due_attempts.refresh_next_due(worker_state)
        else:
            worker_state.set_next_due(None)
            unknown_states.forget_unknown_states(worker_state)
            for queue in worker_state.queues:
                queue.due_work.note_no_more_attempts()

    def _do_chores_between_sweeps(self, seen: IdleProbe) -> None:
        """Do the few parts of a sweep that remain while another worker sweeps for this one: update careful mode, shorten waits that a wrong
        clock made too long, and read again what a person accepted or trusted.
        """
        worker_state = self.components.worker_state
        adopt.delete_rows_of_past_incarnations(worker_state.incarnation)
        adopt.update_careful_mode(worker_state.incarnation, seen)
        shorten_waits_of_wrong_clock(worker_state)
        self.components.admission.reread_registry(seen)
        self.components.admission.recheck_older_code()

    def _check_running_calls(self, now: float) -> None:
        """Check the running calls once a second. Cancel a call if its condition no longer holds and its reaction asks for this. Log a call
        that blocks the event loop.
        """
        if now >= self._next_call_check:
            self._next_call_check = now + SWEEP_S
            self.components.call_turns.cancel_overtaken_calls()
            self.components.call_turns.caller.warn_if_loop_blocked()
