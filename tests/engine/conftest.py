"""A world for each test, closed with all its workers at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.kit import World


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
