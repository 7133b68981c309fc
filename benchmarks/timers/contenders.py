"""The contenders: how each is set up and started, and which of its settings differ from its docs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.crash.contenders import OWN, Contender

PEERS = Path(__file__).parent / "peers"
PROCRASTINATE = ("{bin}/procrastinate", "--app", "procrastinate_timers.app")


def _create_procrastinate(name: str, settings: str, *more: str) -> Contender:
    return Contender(
        name=name,
        database="postgres",
        script=("{python}", "-c", "import procrastinate_timers; procrastinate_timers.main()"),  # its app must not be in the main module
        setup=(*PROCRASTINATE, "schema", "--apply"),
        work=(*PROCRASTINATE, "worker", "--concurrency", "{n}", *more),
        quiet_s=60,  # a job that was being processed when its worker was killed is retried every tenth minute
        packages=("procrastinate",),
        settings=f"schedule_at; deferred in the row's transaction; retry_stalled_jobs as in its docs; {settings}",
        peers=PEERS,
    )


def _create_dbos(way: str, name: str, settings: str) -> Contender:
    return Contender(
        name=name,
        database="postgres",
        script=("{python}", "dbos_timers.py"),
        setup=("{python}", "dbos_timers.py", "setup"),
        work=("{python}", "dbos_timers.py", "work"),
        quiet_s=60,
        packages=("dbos",),
        settings=settings,
        environment={"TIMERS_WAY": way},
        peers=PEERS,
    )


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(
        name="groundstate",
        database="postgres",
        script=("{python}", "-m", "benchmarks.timers.ours"),
        setup=(*OWN, "init", "--app", "benchmarks.timers.ours:app", "--tables", "--accept", "all"),
        work=(*OWN, "run", "benchmarks.timers.ours:app"),
        quiet_s=60,
        packages=("groundstate",),
        settings="due=Timer.due_at, with an index on it",
        peers=PEERS,
    ),
    "celery": Contender(
        name="celery, eta",
        database="postgres",
        script=("{python}", "celery_timers.py"),
        setup=None,
        work=("{bin}/celery", "-A", "celery_timers", "worker", "--concurrency", "{n}", "--loglevel", "WARNING"),
        quiet_s=150,
        packages=("celery", "redis"),
        settings="eta; acks_late, task_reject_on_worker_lost; Redis in memory",
        shortened="where workers are killed: visibility_timeout 60 s (1 h by default), unacked_restore_throttle 1 (10)",
        redis=True,
        peers=PEERS,
    ),
    "procrastinate": _create_procrastinate("procrastinate", "polls each 5 s, by default"),
    "procrastinate-quick": _create_procrastinate(
        "procrastinate, polls each 0.1 s", "fetch_job_polling_interval 0.1 s", "--fetch-job-polling-interval", "0.1"
    ),
    "dbos-delay": _create_dbos(
        "delay", "dbos, delayed queue", "delay_seconds, enqueued in the row's transaction; transaction of a datasource"
    ),
    "dbos-sleep": _create_dbos("sleep", "dbos, durable sleep", "an async workflow that sleeps; enqueued in the row's transaction; a step"),
}
