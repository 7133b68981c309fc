"""How the process of `groundstate run` does, for who asks from outside: the service manager, and probes over HTTP. Asks no database."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from groundstate.app.app import App
from groundstate.engine.threads import stack_of
from groundstate.engine.vitals import Vitals

log = logging.getLogger("groundstate")


@dataclass(frozen=True)
class StoreHealth:
    """Whether the worker of one store carries out; if not, why. waiting: reactions alone that it does not, and why."""

    store: str
    ready: bool
    why: str | None = None
    waiting: Mapping[str, str] = field(default_factory=dict)


class Health:
    """Of one process. For any thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._names = [store.label for store in app.parts]
        self.started = False
        self.draining = False  # set in a signal's handler: at once

    def stuck(self, within_s: float) -> list[str]:
        """What has not come round for so long, in words. Coming up and draining have limits of their own."""
        if not self.started or self.draining:
            return []
        return [words for one in self._app.vitals() if (words := _stuck(one, within_s)) is not None]

    def stores(self, within_s: float) -> list[StoreHealth]:
        """Each store, and whether its worker is up."""
        if not self.started or self.draining:
            why = "the process drains" if self.draining else "the process comes up"
            return [StoreHealth(name, ready=False, why=why) for name in self._names]
        vitals = {one.store: one for one in self._app.vitals()}
        down = self._app.down
        return [_store_health(name, vitals.get(name), within_s, down.get(name)) for name in self._names]

    def in_words(self, within_s: float) -> str:
        """One line for people."""
        if self.draining:
            return "draining: nothing new is begun, and calls in the air may end"
        stuck = self.stuck(within_s)
        if stuck:
            return "; ".join(stuck)
        stores = self.stores(within_s)
        down = [f"{one.store}: {one.why}" for one in stores if not one.ready]
        waiting = [f"{name} is not: {why}" for one in stores if one.ready for name, why in one.waiting.items()]
        return "; ".join([*(down or [f"{self._app.name} is carried out"]), *waiting])


class StuckLog:
    """Tells the log of each worker that gets stuck, once for each time, with where it stands. For one thread, that looks now and then."""

    def __init__(self, app: App, health: Health, within_s: float) -> None:
        self._app = app
        self._health = health
        self._within_s = within_s
        self._told: dict[str, float] = {}  # stores whose worker is stuck, and for how long, as far as that was seen

    def look(self) -> None:
        """Looks now. Coming up and draining have limits of their own."""
        if not self._health.started or self._health.draining:
            return
        for one in self._app.vitals():
            if one.ended is not None or one.turned_s <= self._within_s:
                self._say_over(one)
            elif one.store in self._told:
                self._told[one.store] = one.turned_s
            else:
                self._told[one.store] = one.turned_s
                stack = stack_of(one.thread)
                log.error(
                    "the worker of %s has not come round for %.0f s: a handler%s that waits for something? It stands at:\n%s",
                    one.store,
                    one.turned_s,
                    _of_which(one),
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

    def _say_over(self, one: Vitals) -> None:
        stuck_s = self._told.pop(one.store, None)
        if stuck_s is not None and one.ended is None:
            log.info(
                "the worker of %s comes round again, after %.0f s",
                one.store,
                stuck_s,
                extra={"event": "worker_comes_round", "store": one.store, "stuck_s": round(stuck_s, 3)},
            )


def _of_which(vitals: Vitals) -> str:
    if vitals.at_work is None:
        return ""
    return f" of {vitals.at_work}" + ("" if vitals.at_record is None else f" on {vitals.at_record}")


def _stuck(vitals: Vitals, within_s: float) -> str | None:
    if vitals.ended is not None:
        return None  # another one is started
    if vitals.turned_s > within_s:
        return f"the worker of {vitals.store} has not come round for {vitals.turned_s:.0f} s"
    if vitals.loop_late_s > within_s:
        return f"the loop of async calls of {vitals.store} has been blocked for {vitals.loop_late_s:.0f} s"
    return None


def _store_health(name: str, vitals: Vitals | None, within_s: float, down: str | None) -> StoreHealth:
    if vitals is None:
        return StoreHealth(name, ready=False, why=f"no worker runs for it: {down}" if down else "no worker runs for it")
    why = _stuck(vitals, within_s) if vitals.ended is None else "its worker ended by itself, and another one is to be started"
    if why is None and vitals.held:
        why = "it is held, and waits for a go"
    if why is None and not vitals.sound:
        why = "the lock of its life is lost, or its database cannot be reached"
    if why is None and vitals.trouble is not None:
        why = f"its database is in trouble: {vitals.trouble}"
    return StoreHealth(name, ready=why is None, why=why, waiting=vitals.waiting)
