"""The pytest plugin: gives tests the fixture `lab`. Stands beside the package, so that pytest loads it without importing the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from groundstate.testing import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A crash lab on SQLite, whose scratch databases are removed after the test. For PostgreSQL: `lab.postgres = url`."""
    from groundstate.testing import Lab  # noqa: PLC0415  # else each run of pytest would import SQLAlchemy, whatever it tests

    with Lab() as made:
        yield made
