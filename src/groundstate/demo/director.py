"""Directs the demo: starts the shop and its surroundings, kills the worker repeatedly, waits until all orders are settled, and ends
everything.

It never writes to the database or sends a message to the worker: it starts and kills it, observes by SELECTs, and runs `groundstate
pending` as an operator would.
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
from groundstate.demo.processes import Doors, Processes, kill
from groundstate.demo.show import Progress, Show

APP = "groundstate.demo.shop:app"
CLI = ("-m", "groundstate.cli.main")
LOOK_EVERY_S = 0.25  # seconds between two looks at the progress


class DemoFailed(Exception):
    """The demo could not be completed. The message says which process failed, and ends with its last output."""


@dataclass(frozen=True)
class Plan:
    """The arguments of one demo. `url` is the shop's database, `folder` takes ledgers and logs."""

    url: str
    folder: Path
    orders: int
    kills: int
    seed: int

    @property
    def placing_s(self) -> float:
        """Seconds over which the orders are placed, so that all kills fall into this time."""
        return max(12.0, self.kills * 4.0)

    @property
    def limit_s(self) -> float:
        """Seconds after which the demo ends, even if orders are not settled."""
        return self.placing_s + 90.0

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the shop's processes, which a person needs as well to inspect the result."""
        return {"SHOP_DATABASE": self.url, "GROUNDSTATE_APP": APP, "GROUNDSTATE_STATE": str(self.folder / "state")}


class Director:
    """Runs one demo from its start to its end."""

    def __init__(self, plan: Plan, show: Show) -> None:
        self._plan, self._show = plan, show
        self._doors = Doors("shop", "gateway", "mail")
        ports = self._doors.ports
        self._shop = f"http://127.0.0.1:{ports['shop']}"
        addresses = {"SHOP_GATEWAY": f"http://127.0.0.1:{ports['gateway']}", "SHOP_SMTP": f"127.0.0.1:{ports['mail']}"}
        self._processes = Processes(plan.folder, plan.environment | addresses)
        self._engine = database.engine(plan.url)
        self._dice = Random(plan.seed)
        self._kills = 0

    def perform(self) -> books.Books:
        """Run the whole demo, and return the books as they are at the end. Raises DemoFailed."""
        try:
            with self._processes:
                self._initialise()
                servers = self._open()
                load = self._customers()
                worker = self._go_on_through_kills(servers, load)
                self._until_settled({**servers, "worker": worker}, load)
                self._stop(worker)
            return books.read(self._plan.folder, self._engine)
        finally:
            self._engine.dispose()

    def _initialise(self) -> None:
        done = self._processes.ask([*CLI, "init", "--app", APP, "--tables"])
        if done.returncode != 0:
            raise DemoFailed(f"groundstate init failed:\n{done.stdout}")

    def _open(self) -> dict[str, subprocess.Popen[bytes]]:
        seed, folder = str(self._plan.seed), self._plan.folder
        given = {
            "shop": ["-m", "groundstate.demo.storefront"],
            "gateway": ["-m", "groundstate.demo.gateway", "--ledger", str(folder / books.CHARGES), "--seed", seed],
            "mail": ["-m", "groundstate.demo.mailserver", "--ledger", str(folder / books.MAILS), "--seed", seed],
        }
        servers = {}
        for name, arguments in given.items():
            fd = self._doors.fd(name)
            servers[name] = self._processes.start(name, [*arguments, "--fd", str(fd)], fd=fd)
            self._doors.close(name)
        return servers

    def _customers(self) -> subprocess.Popen[bytes]:
        plan = self._plan
        self._show.say(f"{plan.orders} orders are placed over {plan.placing_s:.0f} s at {self._shop}")
        per_second = str(plan.orders / plan.placing_s)
        given = ["--shop", self._shop, "--ledger", str(plan.folder / books.CUSTOMERS), "--seed", str(plan.seed)]
        return self._processes.start(
            "customers", ["-m", "groundstate.demo.load", *given, "--orders", str(plan.orders), "--per-second", per_second]
        )

    def _worker(self) -> subprocess.Popen[bytes]:
        worker = self._processes.start("worker", [*CLI, "run", APP])
        self._show.say(f"the worker starts, process {worker.pid}", "green")
        return worker

    def _go_on_through_kills(self, servers: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Kill the worker at random moments, show what work is left, and start it again. Return the last worker."""
        worker = self._worker()
        while self._kills < self._plan.kills:
            self._look_on(self._dice.uniform(0.6, 4.2), {**servers, "worker": worker}, load)
            kill(worker)
            self._kills += 1
            self._show.say(f"kill -9 {worker.pid}, the {self._kills}. time", "bold red")
            pending = self._processes.ask([*CLI, "pending", "--app", APP, "--limit", "3"], columns=self._show.inner_width)
            self._show.report("groundstate pending", pending.stdout)
            if pending.returncode not in PENDING_CODES:
                raise DemoFailed(f"groundstate pending ended with {pending.returncode}")
            worker = self._worker()
        return worker

    def _look_on(self, seconds: float, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._show.progress(self._progress())
            self._all_run(running, load)
            time.sleep(min(LOOK_EVERY_S, left))

    def _all_run(self, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        for name, process in running.items():
            if process.poll() is not None:
                raise DemoFailed(f"{name} ended by itself with {process.returncode}; it said:\n{self._processes.log(name)}")
        if load.poll() not in (None, 0):
            raise DemoFailed(f"the customers failed; they said:\n{self._processes.log('customers')}")

    def _until_settled(self, running: dict[str, subprocess.Popen[bytes]], load: subprocess.Popen[bytes]) -> None:
        """Wait until every order is at its end or held, or the time limit has passed; the books show afterwards which it was."""
        until = time.monotonic() + self._plan.limit_s - self._plan.placing_s
        while load.poll() is None or not self._settled():
            if time.monotonic() > until:
                self._show.say("the time is up, and not all is settled", "bold red")
                return
            self._look_on(LOOK_EVERY_S, running, load)
        self._show.progress(self._progress())
        self._show.say("all that can be settled is settled", "green")

    def _stop(self, worker: subprocess.Popen[bytes]) -> None:
        """Stop the worker cleanly by SIGTERM, as an operator's tool would."""
        worker.send_signal(signal.SIGTERM)
        try:
            code = worker.wait(30)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the worker did not end within 30 s of SIGTERM; it said:\n{self._processes.log('worker')}") from None
        self._show.say(f"the worker was told to end, and ended with {code}")

    def _progress(self) -> Progress:
        with self._engine.connect() as connection:
            statuses = connection.execute(text("select status, count(*) from orders group by status"))
            orders: dict[str, int] = {row[0]: row[1] for row in statuses}
            states = connection.execute(text("select state, count(*) from groundstate_attempt group by state"))
            attempts: dict[str, int] = {row[0]: row[1] for row in states}
            mailed = connection.execute(text("select count(*) from orders where mailed_at is not null")).scalar_one()
        return Progress(orders, attempts, mailed, self._kills)

    def _settled(self) -> bool:
        return unsettled(self._engine) == 0


PENDING_CODES = (0,)  # exit codes of `groundstate pending` that are not failures

_UNSETTLED = """
select (select count(*) from groundstate_attempt where state <> 'held')
     + (select count(*) from orders as o
         where ((o.status not in ('packed', 'cancelled') and not exists (
                    select 1 from groundstate_attempt as a where a.record = cast(o.id as text) and a.blocks is not null))
             or (o.receipt is not null and o.mailed_at is null and not exists (
                    select 1 from groundstate_attempt as a where a.record = cast(o.id as text) and a.reaction = 'mailed'))))
"""


def unsettled(engine: Engine) -> int:
    """Return how many orders and attempts are neither at their end nor held."""
    with engine.connect() as connection:
        return int(connection.execute(text(_UNSETTLED)).scalar_one())
