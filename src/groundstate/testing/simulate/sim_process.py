"""A simulated process of a run: a worker for each store, with its threads, connections and locks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine.sql import commit_hooks
from groundstate.engine.worker.worker import Worker
from groundstate.store import driver_guard
from groundstate.testing.simulate.cooperative_threads import Actor
from groundstate.testing.simulate.db_intercept import InterceptedDatabase


@dataclass(eq=False)
class Process:
    """One simulated process. wired: its databases, one for each worker. killed: whether the lab killed it. dead: whether it has ended in
    any way.
    """

    number: int
    workers: list[Worker] = field(default_factory=list)
    wired: list[InterceptedDatabase] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    dead: bool = False
    killed: bool = False
    started: bool = False
    frozen_until_s: float = 0.0  # seconds since the run began until which its threads do not run, as on a paused host

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    def state_left_behind(self) -> tuple[object, ...]:
        """Return what a killed process leaves outside of the database: for each worker incarnation, its id, its count of begun calls, and
        whether it held its lock.
        """
        return tuple((worker.incarnation.id, worker.incarnation.begins, worker.incarnation.sound) for worker in self.workers)

    def driver_connections(self) -> list[Any]:
        """Return the driver connections of the process, including those that hold its locks."""
        locks = [getattr(worker.incarnation.liveness, "_connection", None) for worker in self.workers]
        return [*self.connections, *(one for one in locks if one is not None)]

    def release_resources(self) -> None:
        """Close the connections and files of the process, as the operating system does when a process ends. This frees the process's
        locks.
        """
        self.dead = True
        for worker in self.workers:
            commit_hooks.remove_listener(worker)
            with suppress(Exception):
                worker.incarnation.liveness.release()
            watching = getattr(worker.database, "_watching", None)
            if watching is not None:
                watching.close()
            witness = worker.witness  # when a real process dies, the operating system closes its files
            if witness is not None and hasattr(witness, "close"):
                witness.close()
        for connection in self.connections:
            with suppress(Exception):
                driver_guard.close_despite_guard(connection)


@dataclass(eq=False)
class Task:
    """One future step of a call in flight, which is run `at_s` seconds after the run began."""

    process: Process
    run: Callable[[], None]
    at_s: float
    outlives: bool = False  # whether it is run even if its process dies, as for a request that has left the process
