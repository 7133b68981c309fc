"""The health of the process of `groundstate run`, for the service manager and for HTTP probes. Runs no query."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from groundstate.app.app import App
from groundstate.app.declared import databases_of
from groundstate.engine.call.thread_pool import stack_of
from groundstate.engine.health import WorkerHealth

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class StoreHealth:
    """Whether the worker of one store carries out reactions, and if not, why.

    waiting: by name, reactions that the worker does not carry out although it is ready, each with the reason.
    """

    store: str
    ready: bool
    why: str | None = None
    waiting: Mapping[str, str] = field(default_factory=dict)


class Health:
    """The health of one `groundstate run` process. May be used from any thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._names = [store.label for store in databases_of(app)]
        self.started = False
        self.draining = False  # whether the process is stopping; the signal handler itself sets this, so that probes fail at once

    def find_stuck_workers(self, within_s: float) -> list[str]:
        """Return a sentence for each worker whose thread, or whose event loop, has been blocked for more than `within_s` seconds.

        The list is empty while the process starts or drains, since starting and draining have time limits of their own.
        """
        if not self.started or self.draining:
            return []
        return [words for one in self._app.worker_health() if (words := _why_stuck(one, within_s)) is not None]

    def check_stores(self, within_s: float) -> list[StoreHealth]:
        """Return for each store whether its worker is ready, and if not, why."""
        if not self.started or self.draining:
            why = "the process drains" if self.draining else "the process comes up"
            return [StoreHealth(name, ready=False, why=why) for name in self._names]
        worker_health = {one.store: one for one in self._app.worker_health()}
        down = self._app.down
        return [_store_health(name, worker_health.get(name), within_s, down.get(name)) for name in self._names]

    def describe(self, within_s: float) -> str:
        """Return the health of the process as one line for people."""
        if self.draining:
            return "draining: nothing new is begun, and calls in flight may end"
        stuck = self.find_stuck_workers(within_s)
        if stuck:
            return "; ".join(stuck)
        stores = self.check_stores(within_s)
        down = [f"{one.store}: {one.why}" for one in stores if not one.ready]
        waiting = [f"{name} is not: {why}" for one in stores if one.ready for name, why in one.waiting.items()]
        return "; ".join([*(down or [f"{self._app.name} is carried out"]), *waiting])


class StuckLog:
    """Logs each worker that gets stuck, with the stack of its thread. It logs a worker again only if the worker ran in the meantime.

    Only one thread may use this, by calling `log_changes` repeatedly.
    """

    def __init__(self, app: App, health: Health, within_s: float) -> None:
        self._app = app
        self._health = health
        self._within_s = within_s
        self._stuck_for_s: dict[str, float] = {}  # by store: for how many seconds its worker was stuck at the last call of `log_changes`

    def log_changes(self) -> None:
        """Log the workers that got stuck since the last call of this method, and the workers that run again. Does nothing while the process
        starts or drains.
        """
        if not self._health.started or self._health.draining:
            return
        for one in self._app.worker_health():
            if one.ended is not None or one.turned_s <= self._within_s:
                self._log_no_longer_stuck(one)
            elif one.store in self._stuck_for_s:
                self._stuck_for_s[one.store] = one.turned_s
            else:
                self._stuck_for_s[one.store] = one.turned_s
                stack = stack_of(one.thread)
                log.error(
                    "the worker of %s has been stuck for %.0f s: %s. The stack of its thread:\n%s",
                    one.store,
                    one.turned_s,
                    _describe_work(one),
                    stack,
                    extra={
                        "event": "worker_stuck",
                        "store": one.store,
                        "stuck_s": round(one.turned_s, 3),
                        "reaction": one.at_work,
                        "record": one.at_record,
                        "stack": stack,
                    },
                )

    def _log_no_longer_stuck(self, one: WorkerHealth) -> None:
        stuck_s = self._stuck_for_s.pop(one.store, None)
        if stuck_s is not None and one.ended is None:
            log.info(
                "the worker of %s runs again, after it was stuck for %.0f s",
                one.store,
                stuck_s,
                extra={"event": "worker_comes_round", "store": one.store, "stuck_s": round(stuck_s, 3)},
            )


def _describe_work(worker_health: WorkerHealth) -> str:
    """Return a clause that says what the worker's thread does now, as far as this is known, such as "a handler runs on ..."."""
    if worker_health.at_record is not None:
        which = "" if worker_health.at_work is None else f" of {worker_health.at_work}"
        return f"a handler{which} runs on {worker_health.at_record}, and waits for something"
    if worker_health.at_work is not None:
        return f"no handler runs on a record; a statement for {worker_health.at_work} waits for a lock, or for the server"
    return "no handler runs on a record; a statement, the handler of a schedule, or the machine takes long"


def _why_stuck(worker_health: WorkerHealth, within_s: float) -> str | None:
    if worker_health.ended is not None:
        return None  # the worker ended, and another one is being started
    if worker_health.turned_s > within_s:
        return f"the worker of {worker_health.store} has been stuck for {worker_health.turned_s:.0f} s"
    if worker_health.loop_late_s > within_s:
        return f"the loop of async calls of {worker_health.store} has been blocked for {worker_health.loop_late_s:.0f} s"
    return None


def _store_health(name: str, worker_health: WorkerHealth | None, within_s: float, down: str | None) -> StoreHealth:
    if worker_health is None:
        return StoreHealth(name, ready=False, why=f"no worker runs for it: {down}" if down else "no worker runs for it")
    why = _why_stuck(worker_health, within_s) if worker_health.ended is None else "its worker ended by itself, and another will be started"
    if why is None and worker_health.waits_for_go:
        why = "it waits for a go (--wait-for-go)"
    if why is None and not worker_health.sound:
        why = "the lock of its worker is lost, or its database cannot be reached"
    if why is None and worker_health.trouble is not None:
        why = f"its database is in trouble: {worker_health.trouble}"
    return StoreHealth(name, ready=why is None, why=why, waiting=worker_health.waiting)
