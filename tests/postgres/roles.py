"""Roles with settings of their own, for tests of what a DBA may have set; removed at the end with all that they own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import make_url

from tests.postgres.pairs import asked


@contextmanager
def role(url: str, settings: Mapping[str, str] | None = None, options: str = "superuser") -> Iterator[str]:
    """The URL of this database, as a fresh role. url: a superuser's."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    asked(url, f"create role {name} login {options}")
    try:
        for setting, value in (settings or {}).items():
            asked(url, f"alter role {name} set {setting} = {value}")
        yield make_url(url).set(username=name).render_as_string(hide_password=False)
    finally:
        asked(url, f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{name}'")
        asked(url, f"drop owned by {name}")
        asked(url, f"drop role {name}")
