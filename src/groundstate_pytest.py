"""The pytest plugin with the fixture `lab`: a module outside of the package, so that pytest loads it without importing the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from groundstate.testing import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Provide a crash lab on SQLite, whose scratch databases are removed after the test. For PostgreSQL set `lab.postgres = url`."""
    from groundstate.testing import Lab  # noqa: PLC0415  # imported late, since otherwise every pytest run would import SQLAlchemy

    with Lab() as made:
        yield made
