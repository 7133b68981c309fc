"""The contenders: how each is set up and started, how long its own recovery may take, and which of its settings differ from its docs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONCURRENCY = 8  # most calls in flight, for all contenders
PEERS = Path(__file__).parent / "peers"
OWN = ("{python}", "-m", "groundstate.cli.main")


@dataclass(frozen=True)
class Contender:
    """One contender. Its commands are templates with {python} and {bin}.

    quiet_s: seconds without any event after which the contender will surely do nothing more by itself.
    """

    name: str
    database: str
    script: tuple[str, ...]
    setup: tuple[str, ...] | None
    work: tuple[str, ...]
    quiet_s: float
    packages: tuple[str, ...]
    settings: str
    shortened: str = ""
    redis: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    peers: Path = PEERS  # folder of the contender's script

    @property
    def is_ours(self) -> bool:
        """Whether the contender is groundstate, which runs in this environment."""
        return self.packages == ("groundstate",)

    def fill_in_command(self, words: tuple[str, ...], venv: Path) -> list[str]:
        """Return a command template with {python} and {bin} filled in."""
        python = sys.executable if self.is_ours else str(venv / "bin" / "python")
        return [word.format(python=python, bin=venv / "bin", n=CONCURRENCY) for word in words]


def _create_ours(database: str) -> Contender:
    return Contender(
        name=f"groundstate, {database}",
        database=database,
        script=("{python}", "-m", "benchmarks.crash.ours"),
        setup=(*OWN, "init", "--app", "benchmarks.crash.ours:app", "--tables", "--accept", "all"),
        work=(*OWN, "run", "benchmarks.crash.ours:app"),
        quiet_s=60,
        packages=("groundstate",),
        settings="same_key (keys), or ask with a lookup and settle_after 3 s (find); limit 8",
    )


def _create_celery(way: str, settings: str) -> Contender:
    return Contender(
        name=f"celery, acks {way}",
        database="postgres",
        script=("{python}", "celery_shop.py"),
        setup=None,
        work=("{bin}/celery", "-A", "celery_shop", "worker", "--concurrency", "{n}", "--loglevel", "WARNING"),
        quiet_s=150,
        packages=("celery", "redis"),
        settings=f"{settings}; autoretry_for, max_retries 9, default_retry_delay 5",
        shortened="visibility_timeout 60 s (1 h), unacked_restore_throttle 1 (10)",
        redis=True,
        environment={"CRASH_WAY": way},
    )


def _create_dbos(way: str, name: str, more: str) -> Contender:
    return Contender(
        name=name,
        database="postgres",
        script=("{python}", "dbos_shop.py"),
        setup=("{python}", "dbos_shop.py", "setup"),
        work=("{python}", "dbos_shop.py", "work"),
        quiet_s=60,
        packages=("dbos",),
        settings=f"queue with worker_concurrency 8; step with 10 attempts, 5 s apart; datasource transaction; enqueue_in_transaction{more}",
        environment={"CRASH_WAY": way},
    )


CONTENDERS: dict[str, Contender] = {
    "ours-sqlite": _create_ours("sqlite"),
    "ours-postgres": _create_ours("postgres"),
    "celery-early": _create_celery("early", "the defaults"),
    "celery-late": _create_celery("late", "acks_late, reject_on_worker_lost, prefetch_multiplier 1"),
    "dbos": _create_dbos("plain", "dbos", ""),
    "dbos-waits": _create_dbos(
        "waits", "dbos, waits when recovered", "; a step before the call, and 5 s of waiting after a recovery, of our own"
    ),
    "procrastinate": Contender(
        name="procrastinate",
        database="postgres",
        script=("{python}", "-c", "import procrastinate_shop; procrastinate_shop.main()"),  # its app must not be in the main module
        setup=("{bin}/procrastinate", "--app", "procrastinate_shop.app", "schema", "--apply"),
        work=("{bin}/procrastinate", "--app", "procrastinate_shop.app", "worker", "--concurrency", "{n}"),
        quiet_s=180,
        packages=("procrastinate",),
        settings="RetryStrategy(max_attempts 10, wait 5); retry_stalled_jobs as in its docs; deferred in the order's transaction",
        shortened="retry_stalled_jobs each minute (each 10 minutes)",
    ),
    "pgqueuer": Contender(
        name="pgqueuer",
        database="postgres",
        script=("{python}", "pgqueuer_shop.py"),
        setup=("{bin}/pgq", "install"),
        work=("{python}", "pgqueuer_shop.py", "work"),
        quiet_s=120,
        packages=("pgqueuer",),
        settings='DatabaseRetryEntrypointExecutor(max_attempts 10, 5 s apart), on_failure="hold"; enqueued in the order\'s transaction',
    ),
}
