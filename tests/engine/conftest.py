"""A world for each test, closed with all its workers at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from groundstate.engine import publish_report
from groundstate.engine.sql import record_cycles
from groundstate.rules import circuit_breaker
from tests.engine.kit import World
from tests.patience import HANG_S


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """A fresh database on each store in turn, with an app that has no reactions yet."""
    made = World(database_url)
    yield made
    made.close()


@pytest.fixture
def postgres_world(postgres_url: str) -> Iterator[World]:
    """A fresh world on PostgreSQL, for what only row locks and arrays can show."""
    made = World(postgres_url)
    yield made
    made.close()


@pytest.fixture
def sqlite_world(sqlite_url: str) -> Iterator[World]:
    """A fresh world on SQLite, for what only one connection and PRAGMAs can show."""
    made = World(sqlite_url)
    yield made
    made.close()


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker looks often whether it has something new to say of itself, and a pause lasts as long as the test."""
    monkeypatch.setattr(publish_report, "EACH_S", 0.02)
    monkeypatch.setattr(circuit_breaker, "FIRST_S", 3600.0)
    monkeypatch.setattr(circuit_breaker, "LONGEST_S", 3600.0)
    monkeypatch.setattr(record_cycles, "WITHIN_S", 10 * HANG_S)
