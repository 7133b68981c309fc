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
