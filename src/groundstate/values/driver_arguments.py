"""Translates the connection arguments of other PostgreSQL drivers to those of psycopg. Opens no connection.

An argument that decides which server is reached, or how the connection is secured, is translated or refused, and never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from groundstate.values.errors import StoreRefusedError

_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_ASYNCPG_SAME = frozenset({"host", "port", "user", "password", "dbname", "passfile", "service", "servicefile", "target_session_attrs"})
_ASYNCPG_OWN = frozenset(  # arguments that concern only asyncpg's internals
    {
        "async_fallback",
        "command_timeout",
        "connection_class",
        "loop",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepared_statement_name_func",
        "record_class",
    }
)
_CACHE_SIZES = frozenset({"statement_cache_size", "prepared_statement_cache_size"})
_PSYCOPG2_OWN = frozenset({"connection_factory", "cursor_factory", "async", "async_"})
_PSYCOPG_OURS = frozenset({"autocommit", "row_factory", "cursor_factory"})


def move_hosts_to_query(url: str) -> str:
    """Return a URL that names several hosts in the form that SQLAlchemy parses: ?host=one,two&port=5432,5432.

    libpq writes several hosts as postgresql://one:5432,two:5432/name. Any other URL is returned unchanged.
    """
    several = _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        return url
    places = [_HOST.fullmatch(place) for place in several["hosts"].split(",")]
    if None in places:
        return url  # SQLAlchemy will refuse this URL
    hosts = ",".join((place["in_brackets"] or place["plain"] or "") for place in places if place)
    ports = ",".join(place["port"] or "5432" for place in places if place)
    more = f"&{several['query']}" if several["query"] else ""
    return f"{several['before']}{several['path'] or ''}?host={hosts}&port={ports}{more}"


_SEVERAL_HOSTS = re.compile(r"(?P<before>postgres[^:/]*://(?:[^/?]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?")
_HOST = re.compile(r"(?:\[(?P<in_brackets>[^]]*)\]|(?P<plain>[^][:]*))(?::(?P<port>\d*))?")


def translate_asyncpg_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return psycopg's connection arguments that mean the same as these of asyncpg.

    Raises:
        StoreRefusedError: psycopg has no equivalent of an argument; the message names the cure.
    """
    said: dict[str, Any] = {}
    for name, value in given.items():
        if name in _ASYNCPG_SAME:
            said[name] = value
        elif name == "database":
            said["dbname"] = value
        elif name in {"ssl", "sslmode"}:
            said["sslmode"] = _translate_ssl_mode(value)
        elif name == "timeout":
            said["connect_timeout"] = max(1, round(float(value)))
        elif name == "server_settings":
            said |= _translate_server_settings(value)
        elif name in _CACHE_SIZES:
            # A user who turns asyncpg's cache off connects through a pooler that does not pass prepared statements.
            said |= {"prepare_threshold": None} if int(value) == 0 else {}
        elif name not in _ASYNCPG_OWN:
            message = f"asyncpg's argument {name!r} has no equivalent in psycopg, by which groundstate connects: {_CURE}"
            raise StoreRefusedError(message)
    if callable(said.get("password")):
        message = f"a password that is a function cannot be given to psycopg: {_CURE} (a passfile can be rewritten while the app runs)"
        raise StoreRefusedError(message)
    return said


def translate_psycopg2_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return psycopg's connection arguments that mean the same as these of psycopg2. Both use libpq's names."""
    return {("dbname" if name == "database" else name): value for name, value in given.items() if name not in _PSYCOPG2_OWN}


def filter_psycopg_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return these connection arguments of psycopg without those that groundstate sets itself, since they change what queries return."""
    return {name: value for name, value in given.items() if name not in _PSYCOPG_OURS}


_CURE = "give it a URL of its own, postgresql+psycopg://..., with libpq's parameters"


def _translate_ssl_mode(value: Any) -> str:
    if value is False:
        return "disable"
    if isinstance(value, str) and value in _SSL_MODES:
        return value
    message = (
        "asyncpg's ssl= can be translated to psycopg if it is the name of a mode or False, and not if it is an SSLContext or True:"
        f" {_CURE}, such as ?sslmode=verify-full&sslrootcert=/path/to/ca.pem"
    )
    raise StoreRefusedError(message)


def _translate_server_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    options = []
    for name, value in settings.items():
        if name == "application_name":
            said[name] = value
        else:
            escaped = str(value).replace("\\", "\\\\").replace(" ", "\\ ")
            options.append(f"-c {name}={escaped}")
    return {**said, "options": " ".join(options)} if options else said
