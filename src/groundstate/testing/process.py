"""A process of a run: a worker for each store, its threads, connections and locks; and what is left of it when it dies. Directs nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from groundstate.engine import hints
from groundstate.engine.worker import Worker
from groundstate.store import kept_open
from groundstate.testing.actors import Actor
from groundstate.testing.wires import Wired


@dataclass(eq=False)
class Process:
    """One process. `wired`: its databases, one for each worker."""

    number: int
    workers: list[Worker] = field(default_factory=list)
    wired: list[Wired] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    dead: bool = False
    killed: bool = False
    started: bool = False
    frozen_until_s: float = 0.0  # it stands still until then, as a host that is paused

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    def left(self) -> tuple[object, ...]:
        """What of it a death leaves beside the database: what its lives have written down elsewhere."""
        return tuple((worker.life.id, worker.life.begins, worker.life.sound) for worker in self.workers)

    def drivers(self) -> list[Any]:
        """Its connections, as the drivers have them; those for its locks too, where there are such."""
        locks = [getattr(worker.life.lives, "_connection", None) for worker in self.workers]
        return [*self.connections, *(one for one in locks if one is not None)]

    def let_go(self) -> None:
        """What the system does when a process ends: its connections and files are closed, and its locks are free."""
        self.dead = True
        for worker in self.workers:
            hints.stop_listening(worker)
            with suppress(Exception):
                worker.life.lives.release()
            watching = getattr(worker.database, "_watching", None)
            if watching is not None:
                watching.close()
            witness = worker._witness  # noqa: SLF001  # its descriptors are closed by the system
            if witness is not None and hasattr(witness, "close"):
                witness.close()
        for connection in self.connections:
            with suppress(Exception):
                kept_open.close(connection)


@dataclass(eq=False)
class Task:
    """One step that is still to come of a call in the air."""

    process: Process
    run: Callable[[], None]
    at_s: float
    outlives: bool = False  # a request that has left the process arrives, whoever died
