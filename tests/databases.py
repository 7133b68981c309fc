"""Databases for one test each, on one server: the emptied one of an earlier test where there is one.

Making a database makes some 300 files, and removing it takes them away again; on ext4 the next ones that are made look through all that was
removed a moment ago. So what a test made is dropped in its database, and the database is handed on, under another name: whoever still
knows the old one finds nothing there. One that cannot be emptied to what it was is removed.
"""

from __future__ import annotations

import uuid

import psycopg
from psycopg import sql
from tools.servers.postgres import PostgresServer

_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE oid >= 16384 OR nspname = 'public' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END $$;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
"""
# Whatever a database may hold beside its schemas, and what may be said of itself, but for its name.
_WHAT_IT_IS = """
SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_type), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_depend),
       (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_event_trigger),
       (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_default_acl),
       (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = database.oid),
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = database.datname),
       (SELECT count(*) FROM pg_replication_slots WHERE database = database.datname),
       (SELECT count(*) FROM pg_stat_activity WHERE datid = database.oid AND backend_type = 'client backend'),
       database.datdba, database.datallowconn, database.datconnlimit, database.datacl::text
FROM pg_database database WHERE datname = current_database()
"""


class Databases:
    """Of one server. For one thread."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._control = psycopg.connect(self._driver_url("postgres"), autocommit=True)
        self._empty: list[str] = []
        self._is: dict[str, object] = {}  # what each was when it was new

    def close(self) -> None:
        self._control.close()

    def take(self) -> str:
        """The URL of a database in which nothing is."""
        if self._empty:
            before, name = self._empty.pop(), f"test_{uuid.uuid4().hex[:12]}"
            self._control.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(name)))
            self._is[name] = self._is.pop(before)
        else:
            name = self._server.create_database().rpartition("/")[2]
            with psycopg.connect(self._driver_url(name), autocommit=True) as connection:
                self._is[name] = connection.execute(_WHAT_IT_IS).fetchone()
        return self._server.url(name)

    def give_back(self, url: str) -> None:
        """It is emptied for the next test, or else removed. Connections to it are cut."""
        name = url.rpartition("/")[2]
        try:
            emptied = self._emptied(name)
        except psycopg.Error:
            emptied = False
        if emptied:
            self._empty.append(name)
        else:
            self._server.drop_database(name)

    def _emptied(self, name: str) -> bool:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        self._control.execute(ended, (name,)).fetchall()
        with psycopg.connect(self._driver_url(name), autocommit=True) as connection:
            connection.execute(_EMPTY)
            return connection.execute(_WHAT_IT_IS).fetchone() == self._is[name]

    def _driver_url(self, name: str) -> str:
        return self._server.url(name).replace("postgresql+psycopg:", "postgresql:", 1)
