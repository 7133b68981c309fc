"""Of a test that has many cases on each store, which are run each time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.sampling import STORES, each_case_on_one_store


def made(test: str, *cases: str, stores: tuple[str, ...] = STORES) -> list[Any]:
    return [
        SimpleNamespace(
            nodeid=f"test_it.py::{test}[{store}-{case}]", callspec=SimpleNamespace(id=f"{store}-{case}", params={"database_url": store})
        )
        for store in stores
        for case in cases
    ]


def test_the_first_case_is_run_on_both_stores_and_each_other_one_on_one_of_them_in_turn() -> None:
    items = made("test_a", "one", "two", "three", "four", "five")
    left_out = each_case_on_one_store(items)
    run = [item for item in items if item not in left_out]
    assert sorted(item.callspec.id.partition("-")[2] for item in run) == sorted(["one", "one", "two", "three", "four", "five"])
    assert [item.callspec.id for item in run if item.callspec.id.endswith("-one")] == ["sqlite-one", "postgres-one"]
    stores = [item.callspec.params["database_url"] for item in run]
    assert sorted(stores) == ["postgres"] * 3 + ["sqlite"] * 3


def test_a_case_that_was_asked_for_on_one_store_alone_is_run() -> None:
    assert each_case_on_one_store(made("test_a", "one", "two", stores=("postgres",))) == []


def test_a_test_without_cases_is_run_on_both_stores() -> None:
    items: list[Any] = [
        SimpleNamespace(nodeid=f"test_it.py::test_a[{store}]", callspec=SimpleNamespace(id=store, params={"database_url": store}))
        for store in STORES
    ]
    assert each_case_on_one_store(items) == []
