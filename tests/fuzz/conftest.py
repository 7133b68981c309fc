"""How much nonsense is made, and the shop that it is put to (the one of the tests of the command line)."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from tests.cli.conftest import bare, folder, postgres_shop, shop, sqlite_shop
from tests.fuzz.times import TIMES

__all__ = ["bare", "folder", "postgres_shop", "shop", "sqlite_shop"]


def examples(few: int) -> settings:
    """So many examples, or TIMES as many. Always the same ones in the suite, so that it is red by what changed and by no chance.

    The shop of a test is there for all its examples: each puts it back to where it was.
    """
    fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    made = settings(deadline=None, max_examples=few * TIMES, derandomize=TIMES == 1, database=None, suppress_health_check=fixtures)
    # The first one that is made is the plainest: it adds nothing to those that a test names.
    return settings(made, phases=[Phase.explicit]) if few * TIMES == 1 else made
