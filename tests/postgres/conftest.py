"""A world on PostgreSQL for each test, closed with all its workers at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.kit import World


@pytest.fixture
def world(postgres_url: str) -> Iterator[World]:
    """A fresh database, with an app that has no reactions yet."""
    made = World(postgres_url)
    yield made
    made.close()
