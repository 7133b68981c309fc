"""A reaction that was accepted on a database, and that the code does not declare any more, is named by all who look."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from tests.cli.conftest import Shop

NAMED = "known here, and not declared by this code: older, packed_before. Is the module that declares them imported?"


def known(shop: Shop, name: str, condition: str) -> None:
    shop.sql(
        "INSERT INTO groundstate_reaction (app, name, key_name, condition, suspect, seen_at)"
        f" SELECT app, '{name}', '{name}', '{condition}', suspect, seen_at FROM groundstate_reaction WHERE name = 'packed'"
    )


@pytest.fixture
def changed(shop: Shop) -> Shop:
    """Its code declares two reactions no more; of a third one a person has said that it is no more accepted."""
    known(shop, "packed_before", "orders.status = 1")
    known(shop, "older", "orders.status = 2")
    known(shop, "forgotten", "")
    return shop


@pytest.mark.parametrize("command", ["pending", "status"])
def test_whoever_looks_is_told_of_it(changed: Shop, command: str) -> None:
    said = changed.run(command)
    assert said.code == 0
    assert NAMED in " ".join(said.out.split())
    (store,) = changed.run(command, "--json").json["stores"]
    assert store["report" if command == "pending" else "status"]["gone"] == ["older", "packed_before"]


@pytest.mark.parametrize("command", ["pending", "status"])
def test_nothing_is_said_where_all_is_declared(shop: Shop, command: str) -> None:
    assert "not declared by this code" not in shop.run(command).out


def test_a_start_says_it_once(changed: Shop, caplog: pytest.LogCaptureFixture) -> None:
    changed.load().run_until_idle(timedelta(seconds=60))
    told = [one for one in caplog.records if getattr(one, "event", "") == "reactions_gone"]
    assert [(one.levelno, one.getMessage().startswith(NAMED)) for one in told] == [(logging.WARNING, True)]
