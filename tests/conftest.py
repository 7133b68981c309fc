"""What every test may ask for: a fresh database, on SQLite, on PostgreSQL, or on each of them in turn."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tools.servers.postgres import PostgresServer

from groundstate.app import worker_group
from groundstate.engine.call import call_turn
from groundstate.engine.operate import action
from groundstate.engine.recover import startup
from groundstate.engine.watch import batch_locks, sweeps
from groundstate.engine.worker import shut_down, worker
from groundstate.telemetry import cached_queries
from tests import compiled
from tests.databases import Databases
from tests.patience import HANG_S
from tests.sampling import each_case_on_one_store

_TESTS = Path(__file__).parent


# Files that take longest come first: whoever is handed one last leaves the other processes idle until it is through.
_FIRST = (
    "tools/torture/test_run.py", "docs/test_pages.py", "test_crash_benchmark.py", "testing/test_limited.py",
    "model/test_table_of_the_model.py", "testing/test_kills.py", "engine/watch/test_sweep_leader.py",
    "engine/operate/test_actions.py", "test_timers_benchmark.py",
    "engine/call/test_limiter.py", "testing/test_lab.py", "test_benchmarks.py", "typing/test_typing.py", "postgres/test_failover.py",
    "cli/test_run.py", "store/test_alembic.py", "fuzz/test_files.py", "fuzz/test_column_types.py", "engine/rows/test_begun_with.py",
    "postgres/test_restarts.py",
)  # fmt: skip


# What a test needs, by which `./gs test -m MARKER` chooses: CONTRIBUTING.md.
_UNIT = ("rules", "app")


def pytest_collection_finish() -> None:
    """What was imported stays, and is not gone through each time that garbage is collected: a sixth of what tests computed was that."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="Run every test, also those that are nearly alike: see tests/sampling.py.")


@pytest.hookimpl(tryfirst=True)  # before pytest itself chooses by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that are run this time, by a stable sort: the rest stays in its order."""
    for item in items:
        for marker in _markers(item):
            item.add_marker(marker)
    if not config.getoption("--thorough"):
        thorough = {item for item in items if item.get_closest_marker("thorough")}
        thorough.update(each_case_on_one_store([item for item in items if item not in thorough]))
        config.hook.pytest_deselected(items=[item for item in items if item in thorough])
        items[:] = [item for item in items if item not in thorough]
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(_TESTS).as_posix(), len(place)))


def _markers(item: pytest.Item) -> Iterator[str]:
    """The markers of one test, by its folder, its fixtures and its parameters."""
    where = item.path.relative_to(_TESTS)
    fixtures = set(getattr(item, "fixturenames", ()))
    store = getattr(getattr(item, "callspec", None), "params", {}).get("database_url")
    on_postgres = store == "postgres" or (store is None and "postgres_server" in fixtures)
    if where.parts[0] in _UNIT:
        yield "unit"
    elif where.parts[0] == "transport":
        yield "servers"
    elif on_postgres or where.parts[0] == "postgres":
        yield "postgres"
    else:
        yield "sqlite"
    if where.as_posix() in _FIRST:
        yield "slow"


@pytest.fixture(scope="session", autouse=True)
def _state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What SQLite stores leave in the user's state folder is in one of the tests, for their subprocesses as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDSTATE_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    with compiled.once_for_all_engines():
        yield


@pytest.fixture(scope="session", autouse=True)
def unhurried() -> Iterator[None]:
    """What the product waits for no longer than some seconds, it waits for as long as a test does: a busy machine may need that.

    And what it would do by itself after less than a test waits, it does not do within a test, which would pass by that alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "START_S", HANG_S)  # for a store that does not come up beside one that does
        patch.setattr(startup, "LOCKED_OUT_S", 10 * HANG_S)  # for locks of others, and for a server that takes nobody just now
        patch.setattr(worker, "LEAVES_S", HANG_S)  # at a stop, for its thread
        patch.setattr(shut_down, "CALLS_END_S", HANG_S)  # at a stop, for its async calls
        patch.setattr(call_turn, "LAST_WRITES_S", HANG_S)  # at a stop, to write down what is in doubt
        patch.setattr(action, "PATIENCE_S", HANG_S)  # for a person's word, while a record is locked
        patch.setattr(cached_queries, "WAIT_S", HANG_S)  # for an answer to whoever scrapes
        patch.setattr(sweeps, "SWEEP_LED_S", 10 * HANG_S)  # until it sweeps by itself beside another one that sweeps
        yield


@pytest.fixture
def whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends no batch in its middle: for tests of what the records of one batch do to each other, or of what a batch costs."""
    monkeypatch.setattr(batch_locks.BatchLocks, "target_hold_s", HANG_S)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's own PostgreSQL, with fsync on, as groundstate demands. Started when the first test asks for it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Iterator[Databases]:
    """Where tests get databases of the session's own server."""
    with closing(Databases(postgres_server)) as made:
        yield made


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def postgres_url(databases: Databases) -> Iterator[str]:
    """The URL of a fresh database on the session's PostgreSQL."""
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh database, on each store in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
