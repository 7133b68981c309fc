"""The options of a worker, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groundstate.engine.watch.trace_hooks import Watch
from groundstate.engine.worker.runtime import Runtime
from groundstate.rules.acceptance import Accept
from groundstate.rules.schedule import ScheduleSpec
from groundstate.rules.specs import ReactionSpec


@dataclass(frozen=True)
class Options:
    """The options with which a worker is started."""

    accept: Accept = False  # the new and changed reactions that may start on existing rows, and how to treat the calls for these rows
    after_restore: bool = False  # a person says that the database was restored from a backup
    wait_for_go: bool = False  # the worker carries out nothing until `begin_work` is called
    leave_undeclared: bool = False  # start even if there are attempts of reactions that this version of the application does not declare


@dataclass(frozen=True)
class WorkerSettings:
    """What one worker is made from, apart from its database and its communication with other workers. These values never change."""

    app: str
    store: str  # name of the database in log lines
    specs: Sequence[ReactionSpec]
    schedules: Sequence[ScheduleSpec]
    options: Options
    redact: Callable[[str], str] | None
    watch: Watch | None
    runtime: Runtime
