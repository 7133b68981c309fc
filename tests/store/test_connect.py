"""From what a user gives as a database to what we connect to, and what is refused, with the cure and without the password."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, StaticPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from groundstate.store.connect import open_store, resolve_settings
from groundstate.values.errors import DeclarationError, StoreRefusedError

SECRET = "hunter2"


def refusal(*given: Any, **options: Any) -> str:
    with pytest.raises((StoreRefusedError, DeclarationError)) as caught:
        resolve_settings(*given, **options)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("driver", ["", "+pysqlite", "+aiosqlite"])
def test_sqlite_is_reached_by_pysqlite_at_an_absolute_path(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = resolve_settings(f"sqlite{driver}:///shop.db").url
    assert (url.drivername, url.database) == ("sqlite+pysqlite", str(tmp_path / "shop.db"))


@pytest.mark.parametrize("driver", ["", "+psycopg", "+psycopg2", "+asyncpg"])
def test_postgres_is_reached_by_psycopg(driver: str) -> None:
    settings = resolve_settings(f"postgresql{driver}://me:{SECRET}@host:5/shop", direct=f"postgresql{driver}://me@direct/shop")
    assert settings.url.render_as_string(hide_password=False) == f"postgresql+psycopg://me:{SECRET}@host:5/shop"
    assert settings.direct == URL.create("postgresql+psycopg", "me", host="direct", database="shop")


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        (f"postgresql://me:{SECRET}@one:1,two:2/shop?sslmode=require", "one,two", "1,2"),
        (f"postgresql://me:{SECRET}@one,[::1]:7/shop?sslmode=require", "one,::1", "5432,7"),
        (f"postgresql+asyncpg://me:{SECRET}@one:1,two/shop?ssl=require", "one,two", "1,5432"),
        (f"postgresql://me:{SECRET}@/shop?host=one:1&host=two:2&sslmode=require", "one,two", "1,2"),
        (f"postgresql+asyncpg://me:{SECRET}@/shop?host=one:1&host=two:2&ssl=require", "one,two", "1,2"),
    ],
)
def test_several_hosts_are_named_in_libpqs_way_or_in_sqlalchemys(url: str, hosts: str, ports: str) -> None:
    settings = resolve_settings(url, direct=url)
    assert settings.direct == settings.url
    arguments = settings.url.get_dialect()().create_connect_args(settings.url)[1]
    assert arguments == {"host": hosts, "port": ports, "user": "me", "password": SECRET, "dbname": "shop", "sslmode": "require"}


def test_an_engine_gives_its_url_and_arguments(tmp_path: Path) -> None:
    engine = create_engine(f"postgresql+psycopg://me:{SECRET}@host/shop", connect_args={"sslmode": "require", "autocommit": True})
    settings = resolve_settings(engine)
    assert (settings.url.password, settings.connect_args) == (SECRET, {"sslmode": "require"})
    lite = create_engine(f"sqlite:///{tmp_path}/shop.db", connect_args={"cached_statements": 7, "timeout": 1})
    assert resolve_settings(lite).connect_args == {"cached_statements": 7}


def test_an_async_engine_is_said_in_psycopgs_words() -> None:
    pytest.importorskip("greenlet")
    arguments = {
        "ssl": "require",
        "timeout": 3,
        "statement_cache_size": 0,
        "server_settings": {"jit": "off", "application_name": "a b", "x.y": "a b"},
    }
    settings = resolve_settings(create_async_engine(f"postgresql+asyncpg://me:{SECRET}@host/shop", connect_args=arguments))
    assert settings.url.drivername == "postgresql+psycopg"
    assert settings.connect_args == {
        "sslmode": "require",
        "connect_timeout": 3,
        "prepare_threshold": None,
        "application_name": "a b",
        "options": "-c jit=off -c x.y=a\\ b",
    }


def test_asyncpgs_words_in_a_url_are_said_in_libpqs() -> None:
    settings = resolve_settings("postgresql+asyncpg://me@host/shop?ssl=verify-full&prepared_statement_cache_size=0&command_timeout=5")
    assert settings.url.query == {"sslmode": "verify-full"}
    assert settings.connect_args == {"prepare_threshold": None}


@pytest.mark.parametrize(
    "arguments", [{"ssl": ssl.create_default_context()}, {"ssl": True}, {"direct_tls": True}, {"password": lambda: SECRET}]
)
def test_what_asyncpg_alone_understands_is_refused(arguments: dict[str, Any]) -> None:
    pytest.importorskip("greenlet")
    engine = create_async_engine(f"postgresql+asyncpg://me:{SECRET}@host/shop", connect_args=arguments)
    assert "postgresql+psycopg://" in refusal(engine)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    said = refusal(url)
    assert "use a file" in said
    assert "%" not in said
    assert ":memory:" in said or "memory" not in url or "mode=" in url


@pytest.mark.parametrize("option", ["nolock=1", "immutable=1", "vfs=unix-none", "cache=shared"])
def test_a_file_without_honest_locks_is_refused(option: str) -> None:
    assert "leave it out" in refusal(f"sqlite:///file:/tmp/shop.db?{option}&uri=true")


def test_one_connection_for_all_is_refused(tmp_path: Path) -> None:
    assert "StaticPool" in refusal(create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=StaticPool))


def test_a_connection_of_another_driver_made_elsewhere_is_refused() -> None:
    pytest.importorskip("greenlet")
    engine = create_async_engine(f"postgresql+asyncpg://me:{SECRET}@host/shop", async_creator=lambda: None)
    assert "creator=" in refusal(engine)


@pytest.mark.parametrize(
    "url", [f"mysql://me:{SECRET}@host/shop", f"oracle://me:{SECRET}@host/?password={SECRET}", f"postgresql+pg8000://me:{SECRET}@h/s"]
)
def test_other_databases_are_refused(url: str) -> None:
    assert "sqlite:///" in refusal(url)


def test_what_is_no_url_is_refused() -> None:
    assert "cannot be read" in refusal(f"me:{SECRET}@host")
    assert "not from a int" in refusal(5)


def test_arguments_without_meaning_are_refused(tmp_path: Path) -> None:
    assert "leads past a pooler" in refusal(f"sqlite:///{tmp_path}/shop.db", direct=f"postgresql://me:{SECRET}@host/shop")
    assert "past the pooler" in refusal("postgresql://host/shop", direct=f"mysql://me:{SECRET}@host/shop")
    assert "lossless" in refusal("postgresql://host/shop", failover="perhaps")


def test_a_missing_psycopg_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "psycopg")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(StoreRefusedError, match=r"pip install 'groundstate\[postgres\]'"):
        open_store(resolve_settings("postgresql://host/shop"))


def test_two_paths_to_one_file_share_its_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, other = (open_store(resolve_settings(f"sqlite:///{tmp_path}/{folder}/shop.db"))[1]() for folder in ("real", "link"))
    one.take_lock(1)
    assert other.alive_by_worker([1]) == {1: True}
    one.release()
