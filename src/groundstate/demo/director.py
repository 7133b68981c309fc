"""Directs the demo: starts the shop and the parties around it, kills the worker repeatedly, waits until all orders are settled, and ends
all processes.

The director never writes to the database and sends no message to the worker. It starts and kills the worker, watches the database by
SELECTs, and runs `groundstate pending` as an operator would.
"""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sqlalchemy import Engine, text

from groundstate.demo import books, database
from groundstate.demo.processes import ListeningSockets, Processes, kill_and_reap
from groundstate.demo.show import Progress, Show

APP = "groundstate.demo.shop:app"
CLI = ("-m", "groundstate.cli.main")
LOOK_EVERY_S = 0.25  # seconds between two readings of the demo's progress


class DemoFailed(Exception):
    """The demo could not be completed. The message says which process failed, and ends with its last output."""


@dataclass(frozen=True)
class Plan:
    """The arguments of one demo. url: the URL of the shop's database. folder: the folder of the ledgers and logs."""

    url: str
    folder: Path
    orders: int
    kills: int
    seed: int

    @property
    def placing_s(self) -> float:
        """Seconds over which the orders are placed: long enough for all kills of the worker."""
        return max(12.0, self.kills * 4.0)

    @property
    def limit_s(self) -> float:
        """Seconds after which the demo ends, even if some orders are not settled."""
        return self.placing_s + 90.0

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the shop's processes. A person who inspects the result by commands must set them too."""
        return {"SHOP_DATABASE": self.url, "GROUNDSTATE_APP": APP, "GROUNDSTATE_STATE": str(self.folder / "state")}


class Director:
    """Runs one demo from start to end."""

    def __init__(self, plan: Plan, show: Show) -> None:
        self._plan, self._show = plan, show
        self._listening_sockets = ListeningSockets("shop", "gateway", "mail")
        ports = self._listening_sockets.ports
        self._shop = f"http://127.0.0.1:{ports['shop']}"
        addresses = {"SHOP_GATEWAY": f"http://127.0.0.1:{ports['gateway']}", "SHOP_SMTP": f"127.0.0.1:{ports['mail']}"}
        self._processes = Processes(plan.folder, plan.environment | addresses)
        self._engine = database.create_shop_engine(plan.url)
        self._dice = Random(plan.seed)
        self._kills = 0

    def run(self) -> books.Books:
        """Run the whole demo, and return the books as they are at the end. Raises DemoFailed."""
        try:
            with self._processes:
                self._create_tables()
                servers = self._start_servers()
                load = self._start_customers()
                worker = self._kill_and_restart_worker(servers, load)
                self._wait_until_settled({**servers, "worker": worker}, load)
                self._stop_worker(worker)
            return books.read_books(self._plan.folder, self._engine)
        finally:
            self._engine.dispose()

    def _create_tables(self) -> None:
        done = self._processes.run_to_end([*CLI, "init", "--app", APP, "--tables"])
        if done.returncode != 0:
            raise DemoFailed(f"groundstate init failed:\n{done.stdout}")

    def _start_servers(self) -> dict[str, subprocess.Popen[bytes]]:
        seed, folder = str(self._plan.seed), self._plan.folder
        given = {
            "shop": ["-m", "groundstate.demo.storefront"],
            "gateway": ["-m", "groundstate.demo.gateway", "--ledger", str(folder / books.CHARGES), "--seed", seed],
            "mail": ["-m", "groundstate.demo.mailserver", "--ledger", str(folder / books.MAILS), "--seed", seed],
        }
        servers = {}
        for name, arguments in given.items():
            fd = self._listening_sockets.fd(name)
            servers[name] = self._processes.start(name, [*arguments, "--fd", str(fd)], fd=fd)
            self._listening_sockets.close(name)
        return servers

    def _start_customers(self) -> subprocess.Popen[bytes]:
        plan = self._plan
        self._show.print_line(f"{plan.orders} orders are placed over {plan.placing_s:.0f} s at {self._shop}")
        per_second = str(plan.orders / plan.placing_s)
        given = ["--shop", self._shop, "--ledger", str(plan.folder / books.CUSTOMERS), "--seed", str(plan.seed)]
        return self._processes.start(
            "customers", ["-m", "groundstate.demo.load", *given, "--orders", str(plan.orders), "--per-second", per_second]
        )

    def _start_worker(self) -> subprocess.Popen[bytes]:
        worker = self._processes.start("worker", [*CLI, "run", APP])
        self._show.print_line(f"the worker starts, process {worker.pid}", "green")
        return worker

    def _kill_and_restart_worker(
        self, servers: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]
    ) -> subprocess.Popen[bytes]:
        """As often as planned: kill the worker at a random moment, show what work is left, and start another worker. Return the last
        worker.
        """
        worker = self._start_worker()
        while self._kills < self._plan.kills:
            self._show_progress_for(self._dice.uniform(0.6, 4.2), {**servers, "worker": worker}, load)
            kill_and_reap(worker)
            self._kills += 1
            self._show.print_line(f"kill -9 {worker.pid}, kill {self._kills} of {self._plan.kills}", "bold red")
            pending = self._processes.run_to_end([*CLI, "pending", "--app", APP, "--limit", "3"], columns=self._show.inner_width)
            self._show.print_report("groundstate pending", pending.stdout)
            if pending.returncode not in PENDING_CODES:
                raise DemoFailed(f"groundstate pending ended with exit code {pending.returncode}")
            worker = self._start_worker()
        return worker

    def _show_progress_for(self, seconds: float, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._show.show_progress(self._read_progress())
            self._check_processes_run(running, load)
            time.sleep(min(LOOK_EVERY_S, left))

    def _check_processes_run(self, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        for name, process in running.items():
            if process.poll() is not None:
                raise DemoFailed(
                    f"{name} ended unexpectedly with code {process.returncode}. Its last output:\n{self._processes.last_log_lines(name)}"
                )
        if load.poll() not in (None, 0):
            raise DemoFailed(f"the customers' process failed. Its last output:\n{self._processes.last_log_lines('customers')}")

    def _wait_until_settled(self, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        """Wait until every order is packed, cancelled or has a held attempt, but not longer than the time limit."""
        until = time.monotonic() + self._plan.limit_s - self._plan.placing_s
        while load.poll() is None or not self._is_settled():
            if time.monotonic() > until:
                self._show.print_line("the time limit has passed, and not all orders are settled", "bold red")
                return
            self._show_progress_for(LOOK_EVERY_S, running, load)
        self._show.show_progress(self._read_progress())
        self._show.print_line("every order is packed, cancelled or held", "green")

    def _stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Stop the worker by SIGTERM, as a process manager would."""
        worker.send_signal(signal.SIGTERM)
        try:
            code = worker.wait(30)
        except subprocess.TimeoutExpired:
            raise DemoFailed(
                f"the worker did not end within 30 s of SIGTERM. Its last output:\n{self._processes.last_log_lines('worker')}"
            ) from None
        self._show.print_line(f"the worker got SIGTERM and ended with exit code {code}")

    def _read_progress(self) -> Progress:
        with self._engine.connect() as connection:
            statuses = connection.execute(text("select status, count(*) from orders group by status"))
            orders: dict[str, int] = {row[0]: row[1] for row in statuses}
            states = connection.execute(text("select state, count(*) from groundstate_attempt group by state"))
            attempts: dict[str, int] = {row[0]: row[1] for row in states}
            mailed = connection.execute(text("select count(*) from orders where mailed_at is not null")).scalar_one()
        return Progress(orders, attempts, mailed, self._kills)

    def _is_settled(self) -> bool:
        return count_unsettled(self._engine) == 0


PENDING_CODES = (0,)  # exit codes of `groundstate pending` that are not failures

_UNSETTLED = """
select (select count(*) from groundstate_attempt where state <> 'held')
     + (select count(*) from orders as o
         where ((o.status not in ('packed', 'cancelled') and not exists (
                    select 1 from groundstate_attempt as a where a.record = cast(o.id as text) and a.blocks is not null))
             or (o.receipt is not null and o.mailed_at is null and not exists (
                    select 1 from groundstate_attempt as a where a.record = cast(o.id as text) and a.reaction = 'mailed'))))
"""


def count_unsettled(engine: Engine) -> int:
    """Return the number of attempts that are not held, plus the number of unfinished orders that no attempt explains."""
    with engine.connect() as connection:
        return int(connection.execute(text(_UNSETTLED)).scalar_one())
